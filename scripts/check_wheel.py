"""Build the sdist and the wheel, look inside, and try the wheel where the checkout is out of sight.

python scripts/check_wheel.py [--out dist] [--install]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache"
)
LARGEST = 5_000_000  # bytes: the small data that ship, and the code, take far less


def run(*command: str | Path, cwd: Path) -> str:
    """Run `command`, return what it prints; its whole output goes to stderr when it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        sys.exit(f"check_wheel: failed: {' '.join(map(str, command))}")
    return done.stdout.strip()


def build(out: Path, scratch: Path) -> Path:
    """Build sdist and, from it, the wheel into `out`; the tree itself must give the same wheel."""
    tree = scratch / "tree"  # a copy: an old build/ or egg-info would leak into the wheel
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_BEHIND)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, out, tree, cwd=scratch)
    run(*build, scratch / "direct", "--wheel", tree, cwd=scratch)
    (direct,) = (scratch / "direct").glob("*.whl")
    wheel = out / direct.name
    if contents(wheel) != contents(direct):
        differ = sorted(contents(wheel).items() ^ contents(direct).items())
        sys.exit(f"check_wheel: the sdist builds another wheel than the tree: {differ}")
    return wheel


def contents(wheel: Path) -> dict[str, int]:
    """Names in the wheel and the CRC of each."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def faults(names: Sequence[str], size: int) -> list[str]:
    """What is wrong with a wheel that holds `names` and has `size` bytes; empty when nothing."""
    found = []
    top = {name.split("/")[0] for name in names}
    strangers = {name for name in top if name != "ppgen" and not name.endswith(".dist-info")}
    if strangers:
        found.append(f"top-level names beside ppgen: {sorted(strangers)}")
    wanted = {"ppgen/py.typed"}
    for folder, home in (("ppgen", ""), ("models", "ppgen/"), ("inference", "ppgen/")):
        for path in (ROOT / folder).rglob("*"):
            shipped = path.suffix in (".py", ".jinja") or path.parent == ROOT / "ppgen/data/files"
            if shipped and path.is_file():
                wanted.add(home + path.relative_to(ROOT).as_posix())
    missing = sorted(wanted - set(names))
    if missing:
        found.append(f"missing: {missing}")
    for licence in ("LICENSE", "LICENCES.md"):
        if not any(".dist-info/licenses/" in name and name.endswith(licence) for name in names):
            found.append(f"no {licence} among the licences")
    if size > LARGEST:
        found.append(f"{size} bytes, more than {LARGEST}: which data file is too large?")
    return found


def try_out(wheel: Path, scratch: Path) -> None:
    """Install `wheel` in an environment of its own and use it from outside the checkout.

    The packages that ppgen needs are those of the running environment, lent through a .pth file;
    such a path is not searched for .pth files in turn, so the editable ppgen stays out of sight.
    """
    home = scratch / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--no-deps", "--no-index", wheel),
        cwd=scratch,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=scratch)
    (Path(site) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, ROOT / "scripts" / "check_imports.py", cwd=scratch)
    if not where.startswith(str(home)):
        sys.exit(f"check_wheel: ppgen came from {where}, not from the wheel")
    version = wheel.name.split("-")[1]
    told = run(home / "bin" / "ppgen", "--version", cwd=scratch)
    if version not in told:
        sys.exit(f"check_wheel: `ppgen --version` says {told!r}, the wheel is {version}")
    print(run(home / "bin" / "ppgen", "models", cwd=scratch))


def main() -> None:
    """Build, check and, if asked, try the wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="keep the sdist and the wheel in this folder")
    parser.add_argument("--install", action="store_true", help="also install the wheel and use it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        out = (options.out or scratch / "out").resolve()
        wheel = build(out, scratch)
        names = list(contents(wheel))
        wrong = faults(names, wheel.stat().st_size)
        if wrong:
            sys.exit("check_wheel: " + "; ".join(wrong))
        if options.install:
            try_out(wheel, scratch)
        print(f"check_wheel: {wheel.name}, {len(names)} files, {wheel.stat().st_size} bytes: good")


if __name__ == "__main__":
    main()
