from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from flor_plugins.replayer.sandbox import landlock

HEAD = """
import os, shutil, sqlite3, sys, tempfile
from pathlib import Path
{imports}
from flor_plugins.replayer.sandbox import write_guard
from flor_plugins.replayer.sandbox.write_guard import WriteRefused, forbid_writes, guard_extensions
if sys.argv[2] == "python":
    write_guard.allow_writes_only_in = lambda places: False
outside, box, store = (Path(sys.argv[1]) / name for name in ("outside", "box", "store"))
os.chdir(box)
on = forbid_writes([store], box)
def refused(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except WriteRefused as error:
        assert str(outside) in str(error) and "sandbox" in str(error), str(error)
        assert isinstance(error, PermissionError) and error.errno == 13
    else:
        raise AssertionError(f"{{call}} {{args}} was not refused")
"""


@pytest.fixture(params=["python", "kernel"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """outside/, box/ with links to it, store/, and folders for caches; with the kernel and
    without.
    """
    for name in ("outside/data/deep", "box", "store", "home", "tmp", "cache"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a.txt", "data/b.txt", "data/deep/c.txt"):
        (tmp_path / "outside" / name).write_text("original")
        (tmp_path / "outside" / name).chmod(0o444)
    (tmp_path / "box" / "a.txt").symlink_to(tmp_path / "outside" / "a.txt")
    (tmp_path / "box" / "data").symlink_to(tmp_path / "outside" / "data")
    if request.param == "kernel" and landlock.abi() < landlock.FIRST_WITH_REFER:
        pytest.skip("this kernel offers no Landlock")
    (tmp_path / "mode").write_text(request.param)
    return tmp_path


def run(world: Path, script: str, imports: str = "", **env: str) -> None:
    """Run a script in a guarded process; what lies outside must be the same afterwards."""
    before = {path: path.is_dir() or path.read_bytes() for path in (world / "outside").rglob("*")}
    path = os.pathsep.join(path for path in sys.path if path)
    places = {
        "HOME": str(world / "home"),
        "TMPDIR": str(world / "tmp"),
        "HF_HOME": str(world / "cache" / "hf"),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HEAD.format(imports=imports) + dedent(script),
            str(world),
            (world / "mode").read_text(),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **places, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert {
        path: path.is_dir() or path.read_bytes() for path in (world / "outside").rglob("*")
    } == before


def test_every_way_to_change_a_file_outside_is_refused(world: Path) -> None:
    run(
        world,
        """
    for mode in ("w", "a", "r+", "wb", "ab", "x"):
        refused(open, outside / ("new" if mode == "x" else "a.txt"), mode)
    refused(os.open, outside / "a.txt", os.O_RDWR)
    refused(os.open, outside / "new", os.O_CREAT)
    refused((outside / "a.txt").write_text, "x")
    refused(os.mkdir, outside / "new")
    refused(os.makedirs, outside / "x" / "y")
    refused(os.remove, outside / "a.txt")
    refused(os.rename, outside / "a.txt", "mine")
    (box / "mine").write_text("x")
    refused(os.replace, "mine", outside / "a.txt")
    refused(os.rmdir, outside / "data" / "deep")
    refused(os.truncate, outside / "a.txt", 0)
    refused(os.symlink, "mine", outside / "new")
    refused(os.link, "mine", outside / "new")
    refused(os.chmod, outside / "a.txt", 0o600)
    refused(os.utime, outside / "a.txt")
    refused(shutil.rmtree, outside / "data")
    refused(shutil.move, outside / "data", "moved")
    refused(shutil.copy, "mine", outside / "new")
    refused(sqlite3.connect, outside / "new.db")
    assert open(outside / "a.txt").read() == "original"
    """,
    )


def test_sandbox_store_temporary_and_cache_folders_are_written_as_usual(world: Path) -> None:
    run(
        world,
        """
    caches = (Path(os.environ[name]) for name in ("XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR"))
    for place in (box, store, Path(tempfile.gettempdir()), *caches):
        (place / "a" / "b").mkdir(parents=True)
        (place / "a" / "b" / "f").write_text("x")
        os.replace(place / "a" / "b" / "f", place / "g")  # from one folder to another
        (place / "g").chmod(0o600)
        os.truncate(place / "g", 0)
        shutil.rmtree(place / "a")
    os.replace(box / "g", store / "h")
    with tempfile.TemporaryDirectory() as scratch, sqlite3.connect(":memory:"):
        sqlite3.connect(Path(scratch) / "x.db").close()
    open(os.devnull, "w").close()
    assert sys.dont_write_bytecode
    """,
    )


def test_caches_are_read_where_they_lie_and_written_in_copies(world: Path) -> None:
    hub = world / "cache" / "hf" / "hub"
    hub.mkdir(parents=True)
    (hub / "model").write_text("fetched")
    run(
        world,
        """
    cache = Path(os.environ["HF_HOME"])
    assert (cache / "hub" / "model").read_text() == "fetched"
    (cache / "hub" / "lock").write_text("x")
    (cache / "hub" / "model").write_text("changed")
    assert (cache / "hub" / "model").read_text() == "changed"
    """,
    )
    assert [path.name for path in hub.iterdir()] == ["model"] and (
        hub / "model"
    ).read_text() == "fetched"


def test_what_no_event_of_python_tells_is_refused(world: Path) -> None:
    run(
        world,
        """
    folder = os.open(outside, os.O_RDONLY)
    refused(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
    refused(os.mkfifo, outside / "new")
    refused(os.mknod, outside / "new")
    file = os.open(outside / "a.txt", os.O_RDONLY)
    refused(os.fchmod, file, 0o600)
    refused(os.utime, file)
    refused(os.link, outside / "a.txt", "mine")
    os.link("a.txt", "mine")
    Path("mine").write_text("a copy of my own")
    assert (outside / "a.txt").read_text() == "original"
    """,
    )


def test_programs_are_started_only_if_a_guard_comes_along(world: Path) -> None:
    run(
        world,
        """
    import multiprocessing, subprocess
    write = f"open({str(outside / 'new')!r}, 'w')"
    done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True)
    assert done.returncode and "WriteRefused" in done.stderr, done
    subprocess.run([sys.executable, "-c", "open('data/b.txt', 'a').write(' and more')"], check=True)
    assert Path("data/b.txt").read_text() == "original and more"
    print(subprocess.check_output(["uname"]))
    if "landlock" not in on:
        own = [sys.executable, "-I", "-c", write], [sys.executable, "-qS", "-c", write]
        for command in (*own, ["touch", "x"]):
            try:
                subprocess.run(command)
            except WriteRefused as error:
                assert "program" in str(error)
            else:
                raise AssertionError(command)
        for call in (lambda: os.system("true"), lambda: os.popen("true"),
                     lambda: os.execv("/bin/true", ["true"]),
                     lambda: subprocess.run([sys.executable, "-c", write], env={}),
                     lambda: os.posix_spawn("/bin/true", ["true"], os.environ)):
            try:
                call()
            except WriteRefused:
                continue
            raise AssertionError(call)
    """,
    )


def test_what_is_there_or_not_there_is_said_by_the_system(world: Path) -> None:
    run(
        world,
        """
    os.makedirs(outside / "data", exist_ok=True)
    (outside / "data").mkdir(exist_ok=True)
    (outside / "never").unlink(missing_ok=True)
    try:
        os.mkdir(outside)
    except FileExistsError:
        pass
    """,
    )


def test_a_link_is_copied_up_before_it_is_written(world: Path) -> None:
    run(
        world,
        """
    with open("a.txt", "a") as file:
        file.write(" and more")
    assert open("a.txt").read() == "original and more" and not os.path.islink("a.txt")
    with open(box / "data" / "b.txt", "w") as file:
        file.write("new")
    os.makedirs("data/deep/own/more")
    Path("data/deep/own/more/f").write_text("x")
    assert open("data/deep/c.txt").read() == "original"
    os.remove("data/deep/c.txt")
    os.rename("data/b.txt", "data/deep/moved")
    assert sorted(os.listdir("data")) == ["deep"]
    assert sorted(os.listdir("data/deep")) == ["moved", "own"]
    shutil.rmtree("data/deep")
    """,
    )


def test_a_database_behind_a_link_is_copied_up(world: Path) -> None:
    import sqlite3

    base = sqlite3.connect(world / "outside" / "x.db")
    with base:
        base.execute("create table t (n)")
    base.close()
    (world / "box" / "x.db").symlink_to(world / "outside" / "x.db")
    run(
        world,
        """
    sqlite3.connect(f"file:{outside}/x.db?mode=ro", uri=True).execute("select * from t")
    base = sqlite3.connect("x.db")
    with base:
        base.execute("insert into t values (1)")
    """,
    )


def test_torch_and_safetensors_are_guarded_in_every_spelling(world: Path) -> None:
    run(world, imports="import torch, safetensors.torch, safetensors.numpy\nfrom torch import "
                       "save\n"
        "from safetensors.torch import save_file as mine", script="""
    tensors = {"a": torch.zeros(2)}
    for call in (torch.save, save, torch.serialization.save):
        refused(call, tensors, str(outside / "new"))
        refused(call, tensors, outside / "new")
        call(tensors, box / "new")
    refused(torch.save, tensors, f=str(outside / "new"))
    for call in (mine, safetensors.torch.save_file):
        refused(call, tensors, outside / "new")
        refused(call, tensors, filename=str(outside / "new"))
        call(tensors, "a.txt")
    refused(safetensors.serialize_file, {}, str(outside / "new"), None)
    refused(safetensors.numpy.save_file, {}, str(outside / "new"))
    guard_extensions()
    assert torch.equal(torch.load("new")["a"], tensors["a"])
    """)  # fmt: skip


def test_a_folder_that_holds_the_sandbox_is_not_allowed_as_a_whole(world: Path) -> None:
    run(world, """
    refused(open, outside / "new", "w")
    refused(open, outside / ".." / "outside" / "new", "w")
    here = tempfile.gettempdir()
    assert Path(here).parent.parent == Path('/tmp') and os.environ["TMPDIR"] == here
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    """, TMPDIR=str(world))  # fmt: skip
    assert not list(world.glob("flor-*"))


def test_refusals_bind_c_code_and_children_where_the_kernel_offers_it(world: Path) -> None:
    run(
        world,
        """
    import subprocess
    assert on == (("python",) if sys.argv[2] == "python" else ("python", "landlock"))
    if "landlock" in on:
        for command in (f"echo x > {outside}/new", f"echo x >> {outside}/a.txt",
                        f"rm -f {outside}/a.txt", f"mkdir {outside}/new",
                        f"mv {outside}/data moved", "echo x > data/b.txt"):
            done = subprocess.run(command, shell=True, stderr=subprocess.DEVNULL)
            assert done.returncode != 0, command
    else:
        raise SystemExit
    own = "echo x > mine && mkdir d && mv mine d && rm -r d && echo x > /dev/null"
    subprocess.run(own, shell=True, check=True)
    subprocess.run(f"cat {outside}/a.txt data/b.txt > got", shell=True, check=True)
    """,
    )


def test_data_loader_workers_live_with_it(world: Path) -> None:
    run(
        world,
        imports="import torch",
        script="""
    for way in ("fork",):
        loader = torch.utils.data.DataLoader(
            torch.arange(8), num_workers=2, multiprocessing_context=way
        )
        assert [int(each) for each in loader] == list(range(8))
    """,
    )
