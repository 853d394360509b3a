"""A store in an object store: what is needed comes, what was made goes back, and nothing
there is ever deleted.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from git import Repo

from flor_plugins.errors import DamagedCheckpoint, MissingDependency, SnapshotError, StoreError
from flor_plugins.records import Code, Position, ReplayPass, Row, Run, Task, TrainingRange
from flor_plugins.replayer.execution.remote_sync import files_read
from flor_plugins.replayer.sandbox.worktree import sandbox
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.layout import Store, is_url
from flor_plugins.store.metrics.journal import Journal, read_run
from flor_plugins.store.remote.code_packs import pack, unpack
from flor_plugins.store.remote.mirror import Mirror, cache_of, mirror_of, open_url
from flor_plugins.store.runs import list_runs
from tests.conftest import make_project
from tests.retaining import IDS, at, sections, train

REPLAY = "20260102-000000-000-abcdef"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/bucket/flor"
        return
    yield f"memory://{tmp_path.name}/flor"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def home(url: str, tmp_path: Path) -> Mirror:
    """Where the run was recorded; all of it is in the object store."""
    mirror = Mirror(url, tmp_path / "home")
    run = train(mirror.store, 4)
    mirror.push(run.path)
    return mirror


@pytest.fixture
def node(home: Mirror, tmp_path: Path) -> Mirror:
    """Another machine, which knows what is known of the runs."""
    mirror = Mirror(home.url, tmp_path / "node")
    mirror.pull_records()
    return mirror


def tensors(store: Store) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in store.root.rglob("*.safetensors")}


def task(run: Run, **fields: Any) -> Task:
    return Task(
        run.run_id, run.name, "a" * 40, (ReplayPass(metrics=("acc",), reason="", **fields),)
    )


def objects(mirror: Mirror) -> dict[str, bytes]:
    files, top = fsspec.core.url_to_fs(mirror.url)
    return {path.removeprefix(top): files.cat_file(path) for path in files.find(top)}


def test_what_is_known_of_a_run_comes_without_its_tensors(home: Mirror, node: Mirror) -> None:
    (there,), (here,) = list_runs(home.store), list_runs(node.store)
    assert (here.name, here.position, here.launch) == (there.name, there.position, there.launch)
    assert [row for _, row in read_run(here.path)] == [row for _, row in read_run(there.path)]
    assert [c.position for c in list_checkpoints(here.path)] == [at(epoch) for epoch in range(5)]
    assert tensors(node.store) == set()


def test_only_the_weights_are_fetched_for_a_hook_that_needs_no_more(node: Mirror) -> None:
    (run,) = list_runs(node.store)
    node.pull_files(files_read(node.store, run, task(run, way="state", positions=(at(4),))))
    # what never changed lies in the first checkpoint, what changes no more in the third
    assert tensors(node.store) == {f"{at(epoch)}/model.safetensors" for epoch in (0, 3, 4)}
    state = load_checkpoint(run.path, at(4), ["model"])["model"]
    assert all(torch.equal(state[name], one) for name, one in sections(4)["model"].items())
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(run.path, at(2), ["model"])


def test_all_of_a_state_is_fetched_for_training(node: Mirror) -> None:
    (run,) = list_runs(node.store)
    stretch = TrainingRange(at(2), at(3), (3,))
    node.pull_files(
        files_read(
            node.store, run, task(run, way="train", positions=(at(3),), stretches=(stretch,))
        )
    )
    state = load_checkpoint(run.path, at(2))
    assert torch.equal(
        state["optimizer"][0]["state"][0]["exp_avg"],
        sections(2)["optimizer"][0]["state"][0]["exp_avg"],
    )


def test_only_what_has_changed_is_fetched_again(home: Mirror, node: Mirror) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in node.store.runs.rglob("*") if path.is_file()
    }
    run = home.store.run(IDS[0])
    journal = Journal(run / "metrics" / "record-r0.jsonl", run / "media")
    journal.append(Row(Position(5, 50), "train", "epoch", {"loss": 0.1}, 0.0))
    journal.close()
    home.push(run / "metrics")
    node.pull_records()
    after = {path: path.stat().st_mtime_ns for path in node.store.runs.rglob("*") if path.is_file()}
    assert {path.name for path in after if before.get(path) != after[path]} == {"record-r0.jsonl"}
    assert len(read_run(node.store.run(IDS[0]))) == 5


def test_a_checkpoint_that_was_given_up_there_is_not_planned_with_here(
    home: Mirror, node: Mirror
) -> None:
    files, top = fsspec.core.url_to_fs(home.url)
    files.rm(f"{top}/runs/{IDS[0]}/checkpoints/{at(4)}", recursive=True)
    node.pull_records()
    assert at(4) not in [one.position for one in list_checkpoints(node.store.run(IDS[0]))]


def test_a_replays_rows_and_their_files_go_back(home: Mirror, node: Mirror) -> None:
    run = node.store.run(IDS[0])
    journal = Journal(run / "metrics" / f"replay-{REPLAY}-w0.jsonl", run / "media")
    journal.append(
        Row(at(1), "validation", "epoch", {"matrix": torch.arange(10_000)}, 0.0, "exact", "h")
    )
    journal.seal()
    before = objects(home)
    node.push(run / "media", run / "metrics", only=lambda path: "/media/" in path or REPLAY in path)
    added = objects(home).keys() - before.keys()
    assert {Path(name).suffix for name in added} == {".npy", ".parquet"}
    home.pull_records(media=True)
    rows = [row for source, row in read_run(home.store.run(IDS[0])) if source.is_replay]
    assert [row.values["matrix"].load().sum() for row in rows] == [torch.arange(10_000).sum()]


def test_a_journal_that_is_sealed_while_it_is_put_comes_with_the_next_push(
    home: Mirror, node: Mirror
) -> None:
    run = node.store.run(IDS[0])
    journal = Journal(run / "metrics" / f"replay-{REPLAY}-w0.jsonl", run / "media")
    journal.append(Row(at(1), "validation", "epoch", {"acc": 0.5}, 0.0, "exact", "h"))

    def sealing(path: str) -> bool:
        if path.endswith("-w0.jsonl"):
            journal.seal()
        return REPLAY in path

    assert node.push(run / "metrics", only=sealing) == []
    pushed = node.push(run / "metrics", only=lambda path: REPLAY in path)
    assert [Path(name).suffix for name in pushed] == [".parquet"]


def test_nothing_is_ever_deleted_there(home: Mirror, node: Mirror) -> None:
    before = objects(home)
    shutil.rmtree(node.store.run(IDS[0]) / "checkpoints")
    node.push(node.store.run(IDS[0]))
    node.pull_records()
    assert objects(home) == before


def test_a_run_is_announced_after_its_checkpoints_and_those_after_their_tensors(
    url: str, tmp_path: Path
) -> None:
    mirror = Mirror(url, tmp_path / "home")
    pushed = mirror.push(train(mirror.store, 4).path)
    kinds = [Path(name).name for name in pushed]
    assert kinds[-1] == "run.json" and kinds.count("state.json") == 5
    assert max(i for i, name in enumerate(kinds) if name.endswith(".safetensors")) < kinds.index(
        "state.json"
    )


def test_tensors_that_are_there_are_not_put_again(home: Mirror) -> None:
    again = home.push(home.store.run(IDS[0]))
    assert again and not [name for name in again if name.endswith(".safetensors")]


def test_a_journal_that_is_written_on_here_is_not_replaced(home: Mirror, node: Mirror) -> None:
    """Its writer would go on in a file that nobody reads."""
    run = node.store.run(IDS[0])
    journal = Journal(run / "metrics" / f"replay-{REPLAY}-w0.jsonl", run / "media")
    for epoch in (1, 2, 3):
        journal.append(Row(at(epoch), "validation", "epoch", {"acc": 0.5}, 0.0, "exact", "h"))
        if epoch != 2:
            node.push(run / "metrics")
        node.pull_records()
    found = [row.position for source, row in read_run(run) if source.is_replay]
    assert found == [at(1), at(2), at(3)]
    home.pull_records()
    found = [row.position for source, row in read_run(home.store.run(IDS[0])) if source.is_replay]
    assert found == [at(1), at(2), at(3)]
    journal.close()


def test_a_sealed_journal_that_goes_on_is_open_again_there(home: Mirror, node: Mirror) -> None:
    run = node.store.run(IDS[0])
    path = run / "metrics" / f"replay-{REPLAY}-w0.jsonl"
    for epoch in (1, 2):
        journal = Journal(path, run / "media")
        journal.append(Row(at(epoch), "validation", "epoch", {"acc": 0.5}, 0.0, "exact", "h"))
        if epoch == 1:
            journal.seal()
        node.push(run / "metrics")
    home.pull_records()
    found = [row.position for source, row in read_run(home.store.run(IDS[0])) if source.is_replay]
    assert found == [at(1), at(2)]


def test_what_another_process_has_fetched_meanwhile_stays_noted(
    home: Mirror, node: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = list_runs(node.store)
    first, second, *_ = sorted(
        files_read(node.store, run, task(run, way="state", positions=(at(4),)))
    )
    get = Mirror._get

    def with_another(mirror: Mirror, name: str) -> None:
        if mirror is node:
            Mirror(home.url, node.store.root).pull_files([second])
        get(mirror, name)

    monkeypatch.setattr(Mirror, "_get", with_another)
    node.pull_files([first])
    noted = node._seen()
    assert {
        path.relative_to(node.store.root).as_posix() for path in (first, second)
    } <= noted.keys()


def test_an_interrupted_put_into_a_folder_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(f"file://{tmp_path}/bucket", tmp_path / "home")
    run = train(mirror.store, 1)
    mirror.push(run.path)
    before = objects(mirror)

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copyfile", half)
    (run.path / "run.json").write_text("{}")
    with pytest.raises(OSError, match="no space"):
        mirror.push(run.path)
    assert objects(mirror) == before


def test_what_was_told_of_an_object_never_leads_out_of_the_store(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/{tmp_path.name}/runs/../../../evil.json", b"{}")
    mirror = Mirror(f"memory://{tmp_path.name}", tmp_path / "deep" / "node")
    try:
        with pytest.raises(StoreError, match=r"no file of a store"):
            mirror.pull_records()
    finally:
        files.store.clear()
    assert not list(tmp_path.rglob("evil.json"))


def test_a_url_leads_to_one_folder_that_remembers_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_url(url + "/")
    assert store.root == cache_of(url) and store.root.is_relative_to(tmp_path / "cache")
    again = mirror_of(store)
    assert again is not None and again.url == url
    assert mirror_of(Store(tmp_path / "folder")) is None
    assert is_url(url) and not is_url(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingDependency, match=r"gcsfs.*pip install"):
        Mirror("gs://bucket/flor", Path("nowhere"))


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(StoreError, match="nosuch://bucket"):
        Mirror("nosuch://bucket", Path("nowhere"))


# ---- the code of a run


@pytest.fixture
def versions(tmp_path: Path) -> Repo:
    """A repository with 21 commits; the last one changes one line."""
    root = make_project(tmp_path / "project")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for number in range(20):
        (root / "history.bin").write_bytes(
            torch.rand(5000, generator=torch.Generator().manual_seed(number)).numpy()
        )
        (root / "train.py").write_text(f"print({number})\n")
        subprocess.run(["git", "add", "-A"], cwd=root, check=True)
        subprocess.run(["git", *who, "commit", "-q", "-m", str(number)], cwd=root, check=True)
    return Repo(root)


def test_a_version_travels_without_its_history(versions: Repo, tmp_path: Path) -> None:
    vid, file, bare = (
        versions.head.commit.hexsha,
        tmp_path / "v.pack",
        tmp_path / "node" / "code.git",
    )
    pack(versions, vid, file)
    assert file.stat().st_size < 2 * 20_000
    unpack(file, vid, bare)
    unpack(file, vid, bare)
    with Repo(bare) as there:
        assert [one.hexsha for one in there.iter_commits(vid)] == [vid]
        assert there.git.fsck("--strict") == ""
        code = Code(vid, str(bare), str(tmp_path / "nowhere"))
        with sandbox(there, code, tmp_path / "sandbox") as place:
            assert (place / "train.py").read_text() == "print(19)\n"
    versions.close()


def test_two_versions_share_one_repository(versions: Repo, tmp_path: Path) -> None:
    bare = tmp_path / "code.git"
    vids = [one.hexsha for one in list(versions.iter_commits())[:2]]
    for vid in vids:
        pack(versions, vid, tmp_path / vid)
        unpack(tmp_path / vid, vid, bare)
    with Repo(bare) as there:
        assert [there.git.show(f"{vid}:train.py") for vid in vids] == ["print(19)", "print(18)"]
        assert there.git.fsck("--strict") == ""
    versions.close()


def test_many_unpack_into_one_new_repository_at_once(versions: Repo, tmp_path: Path) -> None:
    vid, file = versions.head.commit.hexsha, tmp_path / "v.pack"
    pack(versions, vid, file)
    for turn in range(6):
        bare = tmp_path / str(turn) / "code.git"
        with ThreadPoolExecutor(8) as together:
            list(together.map(lambda _, bare=bare: unpack(file, vid, bare), range(8)))
        with Repo(bare) as there:
            assert there.git.fsck("--strict") == ""
    versions.close()


def test_a_torn_pack_is_refused(versions: Repo, tmp_path: Path) -> None:
    vid, file = versions.head.commit.hexsha, tmp_path / "v.pack"
    pack(versions, vid, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SnapshotError, match="index-pack"):
        unpack(file, vid, tmp_path / "code.git")
    versions.close()


def test_code_is_pushed_once_and_fetched_by_its_commit(
    url: str, versions: Repo, tmp_path: Path
) -> None:
    vid = versions.head.commit.hexsha
    home, node = Mirror(url, tmp_path / "home"), Mirror(url, tmp_path / "node")
    assert not node.pull_code(vid)
    home.push_code(versions, vid)
    before = objects(home)
    home.push_code(versions, vid)
    assert objects(home) == before and node.pull_code(vid)
    with Repo(node.store.root / "code.git") as there:
        assert there.git.show(f"{vid}:train.py") == "print(19)"
    versions.close()
