"""The pages agree with the code, and their examples work."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import doc_blocks
import pytest

from tokenworks.core import errors
from tokenworks.core.errors import TokenworksError
from tokenworks.gateway.http_limits import LIMITS, fitting

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/*.md")})
PROGRAMS = {"cd", "curl", "export", "git", "make", "pip", "python", "tokenworks"}
KINDS = {"added", "changed", "deprecated", "removed", "fixed", "security"}


def name(value: object) -> str:
    if isinstance(value, Path):
        return value.relative_to(ROOT).as_posix()
    return str(getattr(value, "line", "")) or str(value)


def examples(*languages: str) -> list[tuple[Path, doc_blocks.Block]]:
    pairs = ((page, block) for page in PAGES for block in doc_blocks.blocks(page))
    return [(page, block) for page, block in pairs if block.language in languages]


@pytest.mark.parametrize(("page", "block"), examples("python"), ids=name)
def test_python_examples_run(page: Path, block: doc_blocks.Block) -> None:
    if "factory" in block.words:
        pytest.skip("runs against a factory")
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(page), "exec"), {"__name__": "__example__"})


@pytest.mark.parametrize(("page", "block"), examples(*doc_blocks.SHELLS), ids=name)
def test_shell_examples_name_what_exists(page: Path, block: doc_blocks.Block) -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in doc_blocks.commands(block):
        started = doc_blocks.program(command)
        assert Path(started).name in PROGRAMS, f"{page.name}:{block.line}: {command}"
        if started == "make":
            words = re.sub(r"#.*", "", command).split()[1:]
            named = {word for word in words if "=" not in word and not word.startswith("-")}
            assert named <= targets, f"{page.name}:{block.line}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:docs|decisions|changes|tests|requirements)/[\w./-]+)`", text):
        if page.name == "STYLE.md":
            continue  # it names files of other projects, and rooms that are still to come
        assert (ROOT / target).exists() or (page.parent / target).exists(), target


def leaves(root: type[TokenworksError] = TokenworksError) -> Iterator[type[TokenworksError]]:
    children = [c for c in root.__subclasses__() if c.__module__ == errors.__name__]
    if not children:
        yield root
    for child in children:
        yield from leaves(child)


def rows(page: str) -> list[list[str]]:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if not set("".join(row)) <= set("-")]


def test_every_error_is_explained_with_its_status_and_a_next_step() -> None:
    page = {row[0]: row[1:] for row in rows("errors.md") if row[0] != "code"}
    assert {f"`{leaf.code}`": str(leaf.status) for leaf in leaves()} == {
        code: cells[0] for code, cells in page.items()
    }
    assert all(len(cells) == 3 and all(cells) for cells in page.values())


def test_every_word_of_the_glossary_is_explained_once_in_order() -> None:
    words = [row for row in rows("glossary.md") if row[0] != "word"]
    assert all(len(row) == 2 and row[0] and row[1].endswith(".") for row in words)
    order = [row[0].casefold() for row in words]
    assert order == sorted(set(order))


def test_the_glossary_has_the_words_of_the_house() -> None:
    words = {row[0] for row in rows("glossary.md")}
    assert words >= {
        *("prefill", "decode", "TTFT", "TPOT", "ITL", "interactivity", "throughput", "goodput"),
        *("KV block", "prefix cache", "hit tokens", "worker", "pool", "iteration", "tier"),
        *("tenant", "key", "dispatcher", "driver", "twin", "event", "command", "journal"),
        *("reserve", "post", "void"),
    }


def package_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def project() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": table["dependencies"]} | table["optional-dependencies"]
    return {extra: [package_name(line) for line in lines] for extra, lines in extras.items()}


def test_every_dependency_has_its_reason_and_nothing_else_has() -> None:
    explained = {row[0]: row[2] for row in rows("dependencies.md") if row[0] != "package"}
    assert set(explained) == {name for names in project().values() for name in names}
    assert all(explained.values())


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("core", ("",)),
        ("up", ("", "pictures")),
        ("dev", ("", "pictures", "dev")),
        ("soak", ("", "pictures", "dev", "soak")),
    ],
)
def test_a_lock_file_pins_and_hashes_what_the_project_names(
    lock: str, extras: tuple[str, ...]
) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    entries = re.findall(
        r"^([\w.-]+)(?:\[[\w,.-]+\])?==\S+[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)",
        text,
        re.MULTILINE,
    )
    assert {name for extra in extras for name in project()[extra]} <= {e[0] for e in entries}
    assert len(entries) == len(re.findall(r"^\w", text, re.MULTILINE))  # nothing without a hash
    assert "http:" not in text
    assert "https:" not in text
    assert "index" not in text


def test_fragments_of_the_changelog_have_a_known_kind() -> None:
    for path in (ROOT / "changes").glob("*.md"):
        if path.name != "README.md":
            number, kind, _ = path.name.split(".")
            assert number.isdigit()
            assert kind in KINDS
            assert path.read_text().strip()


def test_blocks_are_found_with_their_lines_and_words(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n\n```Python runnable\nx = 1\n```\n\n  ````\n  ```\n  ````\n")
    assert doc_blocks.blocks(page) == [
        doc_blocks.Block("python", "x = 1\n", 4, ("runnable",)),
        doc_blocks.Block("", "```\n", 8),
    ]
    page.write_text("```bash\nmake\n")
    with pytest.raises(ValueError, match="1: this fence is not closed"):
        doc_blocks.blocks(page)


def test_commands_are_joined_and_output_is_left_out() -> None:
    bash = doc_blocks.Block("bash", "# why\nmake up\ncurl -s \\\n  -d '{\n}' url  # end\n", 1)
    assert doc_blocks.commands(bash) == ["make up", "curl -s \\\n  -d '{\n}' url  # end"]
    assert [doc_blocks.program(c) for c in doc_blocks.commands(bash)] == ["make", "curl"]
    console = doc_blocks.Block("console", "$ make up\nready\n$ KEY=1 curl x\n", 1)
    assert doc_blocks.commands(console) == ["make up", "KEY=1 curl x"]
    assert doc_blocks.program("KEY=1 curl x") == "curl"


def test_limits_of_a_connection_are_the_codes() -> None:
    page = {row[0]: row[1] for row in rows("front-door.md") if row[0] != "limit"}
    code = {f"`{name}`": f"{getattr(LIMITS, name):g}" for name in LIMITS.__struct_fields__}
    assert {limit: f"{float(value):g}" for limit, value in page.items()} == code


def test_so_many_callers_fit_into_so_few_files_as_the_page_says() -> None:
    page = (ROOT / "docs" / "front-door.md").read_text()
    said = re.search(r"(\S+) with (\S+) files, (\S+) with (\S+), (\S+) from (\S+) on", page)
    assert said is not None
    callers, files = ([int(each.replace(",", "")) for each in said.groups()[i::2]] for i in (0, 1))
    assert [fitting(LIMITS, each).connections_max for each in files] == callers
    assert fitting(LIMITS, files[-1] - 1).connections_max < callers[-1] == LIMITS.connections_max
