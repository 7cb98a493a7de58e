"""`publish`: an assembled repository to the Hub, code and weights in one commit.

What is there is compared with what should be, and only the difference is sent. So a run that was interrupted is
continued by the same call: large files that arrived are not sent again, and before the one commit at the end nobody
sees any of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..writer import READ_SIZE
from .card import card_for, check_card, size
from .licences import Terms
from .report import HUB_REPORT, HubReport
from .verification import verify_repository

TRIES = 6
TRANSIENT = (408, 429, 500, 502, 503, 504)
KEPT = (".gitattributes",)  # the Hub's own
CURES = {
    401: "the Hub does not accept the token: `hf auth login`, or set HF_TOKEN to one that may write",
    403: "the token may not write there: use one that may, or another organisation",
    404: "there is no such repository, or the token may not see it",
    409: "the repository was changed by someone else meanwhile: look at it, then publish again",
    412: "the repository was changed by someone else meanwhile: look at it, then publish again",
}


@dataclass(frozen=True)
class File:
    """A file to be there: its path in the repository, and its content, a path here or bytes."""

    name: str
    content: Path | bytes
    nbytes: int
    sha256: str

    @property
    def blob_id(self) -> str:
        """Git's name of the content, by which small files are compared."""
        digest = hashlib.sha1(f"blob {self.nbytes}\0".encode())
        if isinstance(self.content, bytes):
            digest.update(self.content)
        else:
            with open(self.content, "rb") as file:
                while data := file.read(READ_SIZE):
                    digest.update(data)
        return digest.hexdigest()


@dataclass
class Publication:
    """What is to be published, and what became of it.

    Attributes:
        repo_id, private, tag: as given.
        files: everything that the repository shall hold.
        terms: of the sources of its weights.
        sent: names of the files that a run sent; None for a dry run.
        left: names of files on the Hub that are not of this release, and stay.
        deleted: names of such files that were deleted.
        url: of the commit, None for a dry run.
    """

    repo_id: str
    private: bool
    tag: str | None
    files: list[File]
    terms: list[Terms]
    sent: list[str] | None = None
    left: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    url: str | None = None

    @property
    def restricted(self) -> list[Terms]:
        return [one for one in self.terms if one.restricted]

    def table(self) -> str:
        """Files, terms and outcome as text."""
        lines = [f"{self.repo_id} ({'private' if self.private else 'public'}{f', tag {self.tag}' if self.tag else ''})"]
        lines += [f"  {size(file.nbytes):>9}  {file.name}" for file in self.files]
        lines.append(f"  {size(sum(file.nbytes for file in self.files))} in {len(self.files)} files, one commit")
        if self.sent is not None:
            lines.append(f"  {len(self.sent)} files sent, {len(self.files) - len(self.sent)} were there")
        lines += [f"  deleted there: {name}" for name in self.deleted]
        lines += [f"  there, but not of this release: {name}" for name in self.left]
        if self.restricted:
            lines.append("  These weights are not free for every use:")
            lines += [
                f"    {one.model}, from {one.source} ({one.location}): {one.title}, {one.use}"
                for one in self.restricted
            ]
        return "\n".join(lines)


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    tag: str | None = None,
    upload: bool = False,
    agree: Callable[[Publication], bool] | None = None,
    prune: bool = False,
    message: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Publication:
    """
    Upload an assembled repository in one commit, or tell what would be uploaded.

    Args:
        folder: what `assemble` made; its files are checked first.
        repo_id: `ORG/NAME`; made if it does not exist.
        private: make it private. A repository that exists must be so already.
        tag: name for the release; it must not name another commit.
        upload: send. Otherwise nothing is sent and the Hub is not asked.
        agree: asked before sending where some weights are not free for every use; sending needs a yes.
        prune: in the same commit, delete files on the Hub that are not of this release.
        message: of the commit.
        endpoint, token: of the Hub; by default as huggingface_hub is set up.

    Raises:
        ValueError: the folder is not in order, a name cannot be, the terms were not agreed to, the repository is
            public, the tag is taken, or what arrived is not what was sent.
        OSError: the Hub refused, or could not be reached for long; the same call continues.
    """
    plan = _plan(Path(folder), repo_id, private, tag)
    if not upload:
        return plan
    if plan.restricted and not (agree and agree(plan)):
        raise ValueError(
            "The terms of the weights were not agreed to, nothing was sent. Some exclude commercial use or are unknown "
            "(see LICENSE.md): `--yes` says that they allow publishing."
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token)
    try:
        _send(api, plan, prune, message)
    except HfHubHTTPError as error:
        raise _explained(error, plan) from error
    except (RuntimeError, *_transport_errors()) as error:  # type: ignore[misc]  # RuntimeError: of a file's upload
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _explained(cause, plan, f"{error} ") from error
        raise OSError(
            f"{plan.repo_id}: the upload broke off ({error}{f' {cause}' if cause else ''}). Nothing was committed; the "
            "same call continues and does not send again what arrived."
        ) from error
    return plan


def _plan(folder: Path, repo_id: str, private: bool, tag: str | None) -> Publication:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"`repo_id` must be ORG/NAME, got {repo_id!r}.")
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", tag):
        raise ValueError(f"`tag` must be a name such as v1.0, got {tag!r}.")
    report = HubReport.load(folder)
    if problems := verify_repository(folder, load=False, progress=False):
        listed = "\n".join(f"  {problem}" for problem in problems[:10])
        raise ValueError(f"{folder} is not in order, nothing was sent:\n{listed}")
    card = card_for(repo_id, (folder / "README.md").read_text())
    check_card(card)
    written = {"README.md": card.encode(), HUB_REPORT: (folder / HUB_REPORT).read_bytes()}
    files = [File(name, data, len(data), hashlib.sha256(data).hexdigest()) for name, data in written.items()]
    files += [File(name, folder / name, facts["bytes"], facts["sha256"]) for name, facts in report.files.items()]
    return Publication(repo_id, private, tag, files, report.all_terms)


# --------------------------------------------------------------------------------------
# Sending
# --------------------------------------------------------------------------------------


def _send(api, plan: Publication, prune: bool, message: str | None) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _persist(lambda: api.create_repo(plan.repo_id, private=plan.private or None, exist_ok=True))
    head = _persist(lambda: api.repo_info(plan.repo_id))
    if plan.private and not head.private:
        raise ValueError(
            f"{plan.repo_id} exists and is public: make it private on the Hub, or publish without `private`."
        )
    tags = _tags(api, plan)
    add = {
        file.name: CommitOperationAdd(
            file.name, file.content if isinstance(file.content, bytes) else str(file.content.absolute())
        )
        for file in plan.files
    }
    sent: list[str] = []
    for left_tries in reversed(range(TRIES)):
        head = _persist(lambda: api.repo_info(plan.repo_id))
        there = _tree(api, plan.repo_id, head.sha)
        changed = [file for file in plan.files if not _is_there(file, there)]
        foreign = sorted(there.keys() - add.keys() - set(KEPT))
        stale = foreign if prune else []
        plan.left = tuple(name for name in foreign if name not in stale)
        if plan.tag in tags and (changed or stale or tags[plan.tag] != head.sha):
            raise ValueError(f"`tag`: {plan.tag} exists on {plan.repo_id} already, for another commit: choose another.")
        if not (changed or stale):
            break
        sent = [file.name for file in changed]
        plan.deleted = tuple(stale)
        operations = [add[name] for name in sent] + [CommitOperationDelete(name) for name in stale]
        api.preupload_lfs_files(plan.repo_id, additions=[add[name] for name in sent])
        try:
            api.create_commit(
                plan.repo_id,
                operations,
                commit_message=message or f"Publish {plan.tag or 'models'}",
                parent_commit=head.sha,
            )
            break
        except Exception as error:
            if not left_tries or not _is_transient(error):
                raise
            # It may have been accepted all the same: the next round compares before it sends.
            time.sleep(_pause(error, TRIES - left_tries - 1))
    head = _persist(lambda: api.repo_info(plan.repo_id))
    _check_arrived(api, plan, head.sha)
    if plan.tag and plan.tag not in tags:
        _persist(lambda: api.create_tag(plan.repo_id, tag=plan.tag, revision=head.sha, exist_ok=True))
    plan.sent, plan.url = sent, f"{api.endpoint}/{plan.repo_id}/tree/{plan.tag or head.sha}"


def _tags(api, plan: Publication) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in _persist(lambda: api.list_repo_refs(plan.repo_id)).tags}


def _tree(api, repo_id: str, revision: str) -> dict:
    """Files on the Hub by name."""
    from huggingface_hub.hf_api import RepoFile

    entries = _persist(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_there(file: File, there: dict) -> bool:
    entry = there.get(file.name)
    if entry is None or entry.size != file.nbytes:
        return False
    return entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.blob_id


def _check_arrived(api, plan: Publication, commit: str) -> None:
    there = _tree(api, plan.repo_id, commit)
    if wrong := [file.name for file in plan.files if not _is_there(file, there)]:
        raise ValueError(
            f"{plan.repo_id}: what the Hub has in commit {commit} is not what was sent, by size or hash: {wrong[:5]}. "
            "It got no tag. Publish again; if it stays so, ask the Hub."
        )


# --------------------------------------------------------------------------------------
# Trouble
# --------------------------------------------------------------------------------------


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub raises when there is no answer."""
    try:
        import httpx2 as http
    except ImportError:  # before huggingface_hub 2
        import httpx as http  # type: ignore[no-redef]
    return (http.TransportError,)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transient(error: Exception) -> bool:
    # An overloaded server's answer may be a page where JSON was expected.
    return _status(error) in TRANSIENT or isinstance(error, (*_transport_errors(), json.JSONDecodeError))


def _pause(error: Exception, tried: int) -> float:
    """Seconds to wait: what the server says, else twice as long each time."""
    response = getattr(error, "response", None)
    told = response.headers.get("retry-after", "") if response is not None else ""
    return float(told) if told.isdigit() else min(2.0**tried, 30.0)


def _persist(call: Callable):
    """Call again while the trouble may pass. For the requests that huggingface_hub does not repeat by itself."""
    for tried in range(TRIES):
        try:
            return call()
        except Exception as error:
            if tried == TRIES - 1 or not _is_transient(error):
                raise
            time.sleep(_pause(error, tried))


def _explained(error: Exception, plan: Publication, before: str = "") -> OSError:
    status = _status(error)
    cure = CURES.get(status or 0, "the same call continues and does not send again what arrived")
    reason = str(error).strip().splitlines()
    return OSError(f"{plan.repo_id}: {before}{reason[0] if reason else 'the Hub refused'} (status {status}): {cure}.")
