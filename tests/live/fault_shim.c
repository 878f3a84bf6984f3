/* Fails the n-th write or sync of files whose path holds a mark, as a bad or full disk would.
 *
 * Loaded by LD_PRELOAD. A test arms it through ctypes: fault_arm(n, errno, for_good, short_write),
 * n from 1; 0 disarms. fault_calls() is the number of calls on marked files since it was armed, and
 * fault_kinds() a letter for each of the first 4,095: w for a write, s for a sync, t for a cut, in
 * capitals where the file is a write-ahead log. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static volatile long fail_at, calls;
static char kinds[4096];
static volatile int fail_errno, fail_for_good, fail_short;

void fault_arm(long n, int error, int for_good, int short_write) {
  calls = 0;
  memset(kinds, 0, sizeof kinds);
  fail_errno = error;
  fail_for_good = for_good;
  fail_short = short_write;
  fail_at = n;
}

long fault_calls(void) { return calls; }

const char *fault_kinds(void) { return kinds; }

/* How much longer a path is than up to its mark, or -1 if it holds none. */
static long marked(int fd) {
  const char *mark = getenv("FAULT_MARK");
  char link[64], path[4096];
  if (!mark || !*mark) return -1;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return -1;
  path[length] = 0;
  const char *found = strstr(path, mark);
  return found ? (long)strlen(found) - (long)strlen(mark) : -1;
}

/* Whether this call is to fail. */
static int due(int fd, char kind) {
  long more = marked(fd);
  if (more < 0) return 0;
  long call = __sync_add_and_fetch(&calls, 1);
  if (call < (long)sizeof kinds) kinds[call - 1] = more ? kind - 32 : kind;
  return fail_at > 0 && (call == fail_at || (fail_for_good && call > fail_at));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (due(fd, 'w')) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (due(fd, 'w')) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (due(fd, 'w')) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(pwrite64)(fd, data, size, at);
}

int fsync(int fd) {
  if (due(fd, 's')) { errno = fail_errno; return -1; }
  return REAL(fsync)(fd);
}

int fdatasync(int fd) {
  if (due(fd, 's')) { errno = fail_errno; return -1; }
  return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size) {
  if (due(fd, 't')) { errno = fail_errno; return -1; }
  return REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
  if (due(fd, 't')) { errno = fail_errno; return -1; }
  return REAL(ftruncate64)(fd, size);
}
