# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.pull data.dvc`: as `dvc pull`, but why it fails is one sentence, and hashes are compared.

DVC takes what the store inside the repository has for what it should have.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from llicm.errors import UserError
from llicm.provenance.lineage import digest, stages_in

NO_GIT = "get the repository with `git clone`, for an archive of it lacks what DVC needs"
STORE = "restore the store with `git checkout dvcstore`, then run the same command again"


def pull(file: Path, root: Path = Path()) -> None:
    """Fetch what a ``.dvc`` file names.

    Raises:
        UserError: DVC cannot, with its reason; or the store has something else, which is then not left behind.
    """
    command = [sys.executable, "-m", "dvc", "pull", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        reason = _reason(done.stderr) or f"exit code {done.returncode}"
        raise UserError(f"{file}: {reason}; {NO_GIT if 'not a git repository' in reason else STORE}.")
    for path, md5 in stages_in((root / file).absolute())[0].outs.items():
        if digest(path) == md5:
            continue
        cache, wrong = root / ".dvc" / "cache" / "files" / "md5", {path.name: md5}
        if path.is_dir():
            rows = json.loads((cache / md5[:2] / md5[2:]).read_text(encoding="utf-8"))
            wrong = {row["relpath"]: row["md5"] for row in rows if digest(path / row["relpath"]) != row["md5"]}
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for held in wrong.values():  # DVC would take them from there the next time
            (cache / held[:2] / held[2:]).unlink(missing_ok=True)
        raise UserError(f"{file}: the store is damaged ({', '.join(list(wrong)[:3])}); {STORE}.")


def _reason(said: str) -> str:
    """The first error that DVC reports, in one line."""
    found = re.search(r"^ERROR: (.+?)(?=\n\n|\n<|\nERROR|\nIs your|\Z)", said.strip(), re.S | re.M)
    return " ".join(found[1].split()).rstrip(".") if found else " ".join(said.split()[-30:])


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            pull(Path(name))
    except UserError as error:
        sys.exit(f"error: {error}")
