"""Whether the wheel does in an empty environment what docs/guides/your-own-site.md says: ``make wheel TRY=1``.

    python tests/try_wheel.py dist/altgrad-0.1.0-py3-none-any.whl

The wheel is installed with its extra for sites, and nothing else; the logs of the fixtures become a site, which is
served; each page that the navigation has must be there.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"


def main(wheel: Path) -> int:
    """Install, lay out, serve, read; the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        bin_ = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        outside = {
            key: value for key, value in os.environ.items() if not key.startswith(("ALTGRAD", "PYTHON", "WANDB"))
        }
        environment = {**outside, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "NO_MKDOCS_2_WARNING": "1"}

        def run(*words: str, cwd: Path = folder) -> None:
            print("$", *words, flush=True)
            subprocess.run(words, cwd=cwd, env=environment, check=True, stdin=subprocess.DEVNULL)

        shutil.copytree(FIXTURES, folder / "logs", ignore=shutil.ignore_patterns("wandb-*", "*.json.gz"))
        for path in (folder / "logs").rglob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        run(
            str(bin_ / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            f"{wheel.resolve()}[site]",
        )
        run(str(bin_ / "altgrad"), "new-site", "our-runs", "--from", "logs")
        run(str(bin_ / "mkdocs"), "build", "--strict", "-d", str(folder / "site"), cwd=folder / "our-runs")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        serve = [str(bin_ / "mkdocs"), "serve", "-q", "-a", address]
        with subprocess.Popen(serve, cwd=folder / "our-runs", env=environment, stdin=subprocess.DEVNULL) as server:
            try:
                for page in ("", "overview/", "effects/", "curves/", "runs/", "compare/"):
                    text = read(f"http://{address}/{page}")
                    title = re.search(r"<h1[^>]*>([^<&]+)", text)
                    print(f"/{page}: {title[1] if title else 'no title'}")
                    if title is None:
                        return 1
            finally:
                server.terminate()
        missing = subprocess.run([str(bin_ / "python"), "-c", "import torch"], env=environment, capture_output=True)
        print("without torch" if missing.returncode else "torch is there, which the extra does not ask for")
    return 0


def read(address: str, seconds: float = 300) -> str:
    """What is served at an address, as soon as the server is there."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
