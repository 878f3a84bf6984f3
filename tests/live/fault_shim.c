/* Fails the n-th write or sync of files whose path holds a mark, as a bad or full disk would.
 *
 * Loaded by LD_PRELOAD. A test arms it through ctypes: fault_arm(n, errno, for_good, short_write),
 * n from 1; 0 disarms. fault_calls() is the number of calls on marked files since it was armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static volatile long fail_at, calls;
static volatile int fail_errno, fail_for_good, fail_short;

void fault_arm(long n, int error, int for_good, int short_write) {
  calls = 0;
  fail_errno = error;
  fail_for_good = for_good;
  fail_short = short_write;
  fail_at = n;
}

long fault_calls(void) { return calls; }

static int marked(int fd) {
  const char *mark = getenv("FAULT_MARK");
  char link[64], path[4096];
  if (!mark || !*mark) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, mark) != NULL;
}

/* Whether this call is to fail. */
static int due(int fd) {
  if (!marked(fd)) return 0;
  long call = __sync_add_and_fetch(&calls, 1);
  return fail_at > 0 && (call == fail_at || (fail_for_good && call > fail_at));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (due(fd)) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (due(fd)) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (due(fd)) {
    if (!fail_short || size < 2) { errno = fail_errno; return -1; }
    size /= 2;
  }
  return REAL(pwrite64)(fd, data, size, at);
}

int fsync(int fd) {
  if (due(fd)) { errno = fail_errno; return -1; }
  return REAL(fsync)(fd);
}

int fdatasync(int fd) {
  if (due(fd)) { errno = fail_errno; return -1; }
  return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size) {
  if (due(fd)) { errno = fail_errno; return -1; }
  return REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
  if (due(fd)) { errno = fail_errno; return -1; }
  return REAL(ftruncate64)(fd, size);
}
