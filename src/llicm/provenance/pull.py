# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.pull data.dvc`: as `dvc pull`, but why it fails is one sentence, and hashes are compared.

DVC takes what the store inside the repository has for what it should have, and `dvc repro` what is in a folder: it
would adopt one that lost a photo as the new data set, and stage that in git. So what is there is compared, too.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from llicm.errors import UserError
from llicm.provenance.lineage import altered, digest, stages_in

NO_GIT = "get the repository with `git clone`, for an archive of it lacks what DVC needs"
STORE = "restore the store with `git checkout dvcstore`, then run the same command again"


def pull(file: Path, root: Path = Path()) -> None:
    """Fetch what a ``.dvc`` file names, unless it is there. An older version, of which DVC has a copy, is replaced.

    Raises:
        UserError: what is there is neither and stays as it is; DVC cannot fetch it, with its reason; or
            the store has something else, which is then not left behind.
    """
    path, md5 = next(iter(stages_in((root / file).absolute())[0].outs.items()))
    cache = root / ".dvc" / "cache" / "files" / "md5"
    command = [sys.executable, "-m", "dvc", "pull", str(file)]
    if path.exists():
        there = digest(path)
        if there == md5:
            return
        if there is None or not (cache / there[:2] / there[2:]).is_file():
            wrong = _differing(path, md5, [cache, root / "dvcstore" / "files" / "md5"]) or {path.name: md5}
            gone = [name for name in wrong if not (path / name).exists()]
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            some = ", ".join(f"{path.name}/{name}{' (missing)' * (name in gone)}" for name in list(wrong)[:3])
            raise UserError(
                f"{file}: {some}{more}: not as {file} says; get back what it names with `dvc checkout --force {file}` "
                f"or `dvc pull --force {file}`, or adopt what is there with `dvc add {file.with_suffix('')}`."
            )
        command.append("--force")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        reason = _reason(done.stderr) or f"exit code {done.returncode}"
        raise UserError(f"{file}: {reason}; {NO_GIT if 'not a git repository' in reason else STORE}.")
    if digest(path) == md5:
        return
    wrong = {path.name: md5}
    if path.is_dir():
        wrong = _differing(path, md5, [cache]) or wrong
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    for held in filter(None, wrong.values()):  # DVC would take them from there the next time
        (cache / held[:2] / held[2:]).unlink(missing_ok=True)
    raise UserError(f"{file}: the store is damaged ({', '.join(list(wrong)[:3])}); {STORE}.")


def _differing(folder: Path, md5: str, stores: list[Path]) -> dict[str, str | None]:
    """The files of a folder that are not what its listing, in one of DVC's stores, says of them; None for new ones."""
    listing = next((file for store in stores if (file := store / md5[:2] / md5[2:]).is_file()), None)
    return {} if listing is None else altered(folder, listing.read_bytes())


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
