"""Where a factory keeps what it owns, and the data files that ship with the package."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from pathlib import Path
from typing import Final

import msgspec

from tokenworks.catalogue.factory_config import (
    CurvePoint,
    FactoryConfig,
    LedgerConfig,
    PoolConfig,
    check_curve,
    parse_factory_config,
)
from tokenworks.catalogue.packages import Package, parse_packages
from tokenworks.catalogue.price_book import PriceBook, PriceBooks, parse_price_book
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.batch_room import BATCHES, FILES, StoredBatches
from tokenworks.live.file_room import StoredFiles
from tokenworks.live.postgres import PostgresDatabase
from tokenworks.live.shelf import DatabaseShelf
from tokenworks.live.sqlite import SQLiteDatabase
from tokenworks.live.store import SQLStore, postgres_store, sqlite_store

HOME_VARIABLE: Final = "TOKENWORKS_HOME"
MODEL_FILE: Final = "foreman-q8_0.gguf"
FOREMAN: Final = "foreman"

Curves = dict[str, tuple[CurvePoint, ...]]
"""Measured speed by pool."""


class Home:
    """One factory's folder, readable by its owner alone.

    Attributes:
        path: the folder: $TOKENWORKS_HOME, or ``~/.tokenworks``.

    Args:
        path: another folder.
        read: the settings as they were read before, which hold whatever the file says by now; None
            to read the file whenever they are asked for.
    """

    def __init__(self, path: Path | None = None, read: FactoryConfig | None = None) -> None:
        given = os.environ.get(HOME_VARIABLE)
        self.path = path or (Path(given) if given else Path.home() / ".tokenworks")
        self._read = read

    @property
    def ledger(self) -> Path:
        """The SQLite ledger."""
        return self.path / "ledger.sqlite"

    @property
    def journal(self) -> Path:
        """The folder of journal files."""
        return self.path / "journal"

    @property
    def key(self) -> Path:
        """The secret of the operator's own key, for the command line on this machine."""
        return self.path / "key"

    @property
    def url(self) -> Path:
        """Where the factory that runs from this folder listens; the command line reads it."""
        return self.path / "url"

    @property
    def settings(self) -> Path:
        """The operator's ``factory.toml``, if there is one."""
        return self.path / "factory.toml"

    @property
    def price_book(self) -> Path:
        """The operator's ``price_book.toml``, if there is one."""
        return self.path / "price_book.toml"

    @property
    def prices(self) -> Path:
        """The operator's price books for other days than the first, if there are any."""
        return self.path / "prices"

    @property
    def packages(self) -> Path:
        """The operator's ``packages.toml``, if there is one."""
        return self.path / "packages.toml"

    @property
    def shelf(self) -> Path:
        """What tenants leave here, where no database server keeps it."""
        return self.path / "shelf.sqlite"

    @property
    def curves(self) -> Path:
        """What ``tokenworks tiers measure --write`` measured."""
        return self.path / "curves.json"

    @property
    def twin_mark(self) -> Path:
        """Is there if the folder is that of a modelled factory."""
        return self.path / "twin.json"

    def make(self) -> None:
        """Make the folder.

        Raises:
            ConfigInvalid: it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigInvalid(
                f"The folder {str(self.path)!r} cannot be made: {error.strerror}.",
                hint=f"Set {HOME_VARIABLE} to a folder that you may write.",
            ) from error
        if not os.access(self.path, os.W_OK):
            raise ConfigInvalid(
                f"The folder {str(self.path)!r} cannot be written.",
                hint=f"Set {HOME_VARIABLE} to a folder that you may write.",
            )

    def load_settings(self) -> FactoryConfig:
        """The operator's settings, or the ones that ship."""
        if self._read is not None:
            return self._read
        return parse_factory_config(_own(self.settings, "factory.toml"))

    def load_price_book(self) -> PriceBook:
        """The operator's price book, or the one that ships."""
        return parse_price_book(_own(self.price_book, "laptop.toml"))

    def load_price_books(self) -> PriceBooks:
        """The operator's price book, or the one that ships, and those in ``prices/``.

        Raises:
            ConfigInvalid: one of them is wrong, or two hold from the same day.
        """
        more = [parse_price_book(_text(path)) for path in sorted(self.prices.glob("*.toml"))]
        if more and not self.price_book.exists():
            return PriceBooks(more)
        return PriceBooks([self.load_price_book(), *more])

    def load_packages(self) -> dict[str, Package]:
        """The operator's packages; none if there is no file.

        Raises:
            ConfigInvalid: the file is wrong.
        """
        return parse_packages(_text(self.packages)) if self.packages.exists() else {}

    def shares_ledger(self) -> bool:
        """Whether other factories may use this one's ledger at the same time."""
        ledger = self.load_settings().ledger
        return bool(ledger.path) or ledger.url_in(os.environ) is not None

    def shares_batches(self) -> bool:
        """Whether all factories that share this one's port would find the same batches."""
        settings = self.load_settings()
        return bool(settings.ledger.path) or not settings.gateway.share_port

    def has_ledger(self) -> bool:
        """Whether there is a ledger to read; a database is taken to be there."""
        ledger = self.load_settings().ledger
        return ledger.url_in(os.environ) is not None or self._ledger_file(ledger).exists()

    def open_ledger(
        self, owner: str = "tool", *, sole: bool = False, shared: bool = False
    ) -> SQLStore:
        """The ledger that the settings name.

        Args:
            owner: the process that appends.
            sole: refuse to open if another factory has opened it.
            shared: refuse to open if another factory has it for itself.

        Raises:
            ConfigInvalid, LedgerUnavailable, LedgerCorrupt: see ``SQLStore``.
        """
        ledger = self.load_settings().ledger
        url = ledger.url_in(os.environ)
        if url is not None:
            return postgres_store(url, owner, sole=sole)
        return sqlite_store(self._ledger_file(ledger), owner, sole=sole, shared=shared)

    def open_shelf(self) -> DatabaseShelf:
        """What tenants leave here: a file beside the ledger's, or a table of its database server.

        Raises:
            ConfigInvalid, LedgerUnavailable, LedgerCorrupt: see ``Database``.
        """
        url = self.load_settings().ledger.url_in(os.environ)
        if url is not None:
            return DatabaseShelf(PostgresDatabase(url))
        return DatabaseShelf(SQLiteDatabase(self.shelf))

    def open_batches(self) -> StoredBatches:
        """Tenants' batches, and the files that they read and write.

        They lie in this folder, or beside the SQLite ledger of all that share a port.

        Raises:
            LedgerUnavailable, LedgerCorrupt: see ``StoredFiles``.
        """
        folder = self._batches_folder()
        files = StoredFiles(SQLiteDatabase(folder / BATCHES, shrinks=True), folder / FILES)
        return StoredBatches(files, folder / "batches.lock")

    def has_batches(self) -> bool:
        """Whether anybody has left a batch or a file here."""
        return (self._batches_folder() / BATCHES).exists()

    def _batches_folder(self) -> Path:
        settings = self.load_settings()
        path = settings.ledger.path if settings.gateway.share_port else ""
        return Path(path).parent if path else self.path

    def ledger_file(self) -> Path | None:
        """The SQLite file that holds the ledger; None if a database server does."""
        ledger = self.load_settings().ledger
        return None if ledger.url_in(os.environ) is not None else self._ledger_file(ledger)

    def _ledger_file(self, ledger: LedgerConfig) -> Path:
        return Path(ledger.path) if ledger.path else self.ledger

    def load_curves(self) -> Curves:
        """Measured curves by pool; none if nothing was measured here.

        Raises:
            ConfigInvalid: the file is not what ``tiers measure`` writes.
        """
        if not self.curves.exists():
            return {}
        try:
            curves = msgspec.json.decode(_bytes(self.curves), type=Curves)
        except msgspec.DecodeError as error:
            raise ConfigInvalid(
                f"{str(self.curves)!r} cannot be read: {error}.",
                hint="Delete it, or run `tokenworks tiers measure --write`.",
            ) from error
        for pool, curve in curves.items():
            check_curve(curve, f"{self.curves.name}: {pool}")
        return curves

    def read_key(self) -> str | None:
        """The operator's own secret, once ``tokenworks up`` has made it."""
        return _text(self.key).strip() or None if self.key.exists() else None

    def read_url(self) -> str | None:
        """Where the factory of this folder listens, or listened if it was killed."""
        return _text(self.url).strip() or None if self.url.exists() else None

    def forget_url(self) -> None:
        """Remove the address of a factory that does not listen there any more.

        Raises:
            ConfigInvalid: it cannot be removed.
        """
        try:
            self.url.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigInvalid(
                f"{str(self.url)!r} cannot be removed: {error.strerror}.", hint="Remove it."
            ) from error

    def write_private(self, path: Path, text: str) -> None:
        """Write a file that only its owner may read, whole or not at all.

        Raises:
            ConfigInvalid: it cannot be written.
        """
        part = path.with_name(path.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o600)  # a part left by somebody else keeps its own mode
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            part.replace(path)
        except OSError as error:
            raise ConfigInvalid(
                f"{str(path)!r} cannot be written: {error.strerror}.",
                hint="Look at the disk's free space and at the folder's permissions.",
            ) from error


def packaged(name: str) -> Path:
    """A data file of the package."""
    return Path(str(importlib.resources.files("tokenworks.catalogue") / "data" / name))


def _own(own: Path, shipped: str) -> str:
    return _text(own if own.exists() else packaged(shipped))


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigInvalid(
            f"{str(path)!r} cannot be read: {error}.", hint="It must be a UTF-8 text file."
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(
            f"{str(path)!r} cannot be read: {error.strerror}.", hint="Look at its permissions."
        ) from error


class ModelFacts(msgspec.Struct, frozen=True):
    """What ships with foreman's weights: ``foreman.json``.

    Attributes:
        sha256: of the GGUF file.
        context_tokens: the longest sequence it was made for.
        curve: the speed measured where the package was made, for machines not measured yet.
    """

    sha256: str
    context_tokens: int
    curve: tuple[CurvePoint, ...]


def foreman_facts() -> ModelFacts:
    """The facts that ship with the weights.

    Raises:
        ConfigInvalid: they are missing or damaged.
    """
    path = packaged("foreman.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelFacts)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(
            f"{path.name}, which ships with the weights, cannot be read: {error}.",
            hint="Install tokenworks again.",
        ) from error


def model_path(pool: PoolConfig) -> Path:
    """The weights of an embedded pool, checked.

    Raises:
        ConfigInvalid: the file is missing or, for our own model, not the one that was shipped.
    """
    if pool.path:
        path = Path(pool.path).expanduser()
        if not path.is_file():
            raise ConfigInvalid(f"There is no model file {pool.path!r}.", hint="Mend `path`.")
        return path
    if pool.model != FOREMAN:
        raise ConfigInvalid(
            f"No weights ship for the model {pool.model!r}.", hint="Set `path` to a GGUF file."
        )
    path = packaged(MODEL_FILE)
    found = hashlib.sha256(_bytes(path)).hexdigest() if path.is_file() else "missing"
    if found != foreman_facts().sha256:
        raise ConfigInvalid(
            f"The weights in {path.name} are not the ones that were shipped (sha256 {found}).",
            hint="Install tokenworks again.",
        )
    return path
