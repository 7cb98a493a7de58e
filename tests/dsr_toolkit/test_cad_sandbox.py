"""The sandbox: attacks with the policy check and without it, as this user and as an ordinary one; answers;
confinements."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cadquery")

from dsr_toolkit.cad import ConfinementError, Sandbox, SandboxLimits, syscalls  # noqa: E402
from dsr_toolkit.cad.answers import judge  # noqa: E402
from dsr_toolkit.cad.confinement import CONFINEMENTS, NOBODY  # noqa: E402
from tests.dsr_toolkit.cad_attacks import (
    ATTACKS,
    BOX,
    LIMITS,
    VALID_R,
    Outcome,
    attack,
    descendants,
    is_running,
    settled,
)  # noqa: E402
from tests.dsr_toolkit.warm_sandbox import warm  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def confinements(kept_servers):
    """Hostile programs are run where every confinement can be had, and nowhere else."""
    try:
        with warm():
            Sandbox(workers=1).close()
    except ConfinementError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def checked():
    with warm():
        sandbox = Sandbox(workers=2, limits=LIMITS)
    with sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def unchecked():
    with warm():
        sandbox = Sandbox(workers=2, limits=LIMITS, policy=False)
    with sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def with_policy(tmp_path_factory):
    with warm():
        return attack(True, tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="module")
def without_policy(tmp_path_factory):
    with warm():
        return attack(False, tmp_path_factory.mktemp("unchecked"))


def assert_unharmed(outcome: Outcome) -> None:
    """No file outside, no process or socket left, and the next program runs as ever."""
    assert outcome.files == ["secret.stl"]
    assert outcome.processes == 1  # the worker
    assert outcome.following == "ok" and outcome.following_extents == [2, 3, 4]
    assert outcome.message.isprintable() and stat.S_IMODE(os.stat("/dev/null").st_mode) == 0o666
    with socket.socket() as free:
        free.bind(("", 45678))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_with_policy_check(name, with_policy):
    outcome, expected = with_policy[name], ATTACKS[name][1]
    assert expected is None or outcome.code == expected, outcome.message
    assert_unharmed(outcome)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_without_policy_check(name, without_policy):
    outcome, expected = without_policy[name], ATTACKS[name][2]
    assert expected is None or outcome.code in expected, (outcome.code, outcome.message)
    if (
        outcome.code == "ok" and expected is not None
    ):  # never a forged solid: attacks that end well end with a unit cube
        assert outcome.extents == [1, 1, 1] and abs(outcome.volume - 1) < 1e-9
    assert_unharmed(outcome)


def test_signals_are_told_apart(without_policy):
    assert without_policy["abort"].signal == signal.SIGABRT
    assert without_policy["segmentation fault"].signal == signal.SIGSEGV


@pytest.fixture(scope="module")
def home():
    """A folder that everybody can enter. pytest's own are closed again whenever somebody starts pytest."""
    with tempfile.TemporaryDirectory(prefix="ordinary-") as folder:
        os.chmod(folder, 0o755)
        os.chown(folder, NOBODY if os.geteuid() == 0 else -1, -1)
        yield Path(folder)


@pytest.fixture(scope="module")
def ordinary(home):
    """How to start Python as a user who is not root: one that this user may execute, with the packages of this one."""
    if os.geteuid() != 0:
        pytest.skip("the list has just been run as an ordinary user")
    venv.create(home / "python", symlinks=True)
    own = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    if own is not None:  # the interpreter of this environment may lie in root's home
        link = home / "python" / "bin" / "python"
        link.unlink()
        link.symlink_to(own)
        (home / "python" / "pyvenv.cfg").write_text(f"home = {Path(own).parent}\n")
    packages = next((home / "python" / "lib").iterdir()) / "site-packages" / "all.pth"
    packages.write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    command = [str(home / "python" / "bin" / "python")]
    ordinary = {
        "user": NOBODY,
        "group": NOBODY,
        "extra_groups": [],
        "env": {"HOME": str(home), "PATH": os.environ["PATH"]},
        "cwd": "/",
    }
    try:
        subprocess.run([*command, "-c", "import numpy, cadquery"], check=True, capture_output=True, **ordinary)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no Python here that an ordinary user may execute: {error}")
    return lambda *arguments: subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, **ordinary
    )


# What the policy refuses is refused before there is a process of any user: the confinement is what "free" tries.
@pytest.mark.parametrize(
    "policy", [pytest.param("free", marks=pytest.mark.slow), pytest.param("policy", marks=pytest.mark.long)]
)
def test_attacks_as_an_ordinary_user(ordinary, policy):
    done = ordinary(str(ROOT / "tests" / "dsr_toolkit" / "cad_attacks.py"), policy)
    outcomes = {name: Outcome(**values) for name, values in json.loads(done.stdout).items()}
    check = test_attack_with_policy_check if policy == "policy" else test_attack_without_policy_check
    wrong = {}
    for name in ATTACKS:
        try:
            check(name, outcomes)
        except AssertionError as error:
            wrong[name] = (outcomes[name], str(error))
    assert not wrong


def test_nothing_is_left_from_one_program_to_the_next(unchecked):
    assert unchecked.run(BOX + "\nx = 1").ok
    assert unchecked.run("x").code == "runtime"
    assert unchecked.run("pass").code == "no_result"
    unchecked.run("import cadquery as cq\ncq.Workplane.box = None")
    assert unchecked.run(BOX).ok


def test_memory_limit_holds_for_what_is_never_touched(unchecked):
    assert unchecked.run("import mmap\nx = mmap.mmap(-1, 4 * 2**30)" + VALID_R).code in ("memory", "runtime")


# --------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------


def test_a_solid_comes_back_as_arrays(checked):
    found = checked.run(BOX)
    assert (found.code, found.volume) == ("ok", pytest.approx(24))
    assert found.vertices.dtype == np.float64 and found.faces.shape == (12, 3) and set(found.solids) == {0}


def test_a_solid_becomes_a_step_file_where_it_was_asked_for(checked, tmp_path):
    from modeling_dsr.cad_files import load_mesh

    done, step = checked.step(checked.run(BOX), scale=2.0, offset=(10, 0, 0))
    assert done.ok and step.startswith(b"ISO-10303-21")
    (tmp_path / "part.step").write_bytes(step)
    np.testing.assert_allclose(load_mesh(tmp_path / "part.step").bounds, [[8, -3, -4], [12, 3, 4]], atol=1e-6)


def test_without_a_solid_there_is_no_step_file(checked):
    with pytest.raises(ValueError, match="must be an execution that is ok"):
        checked.step(checked.run("r = 5"))


@pytest.mark.parametrize(
    "program, code",
    [
        ("r = 5", "no_result"),
        ("import cadquery as cq\nr = cq.Workplane().rect(1, 1)", "empty_mesh"),
        ("import cadquery as cq\nr = cq.Workplane()", "no_result"),
        ("import cadquery as cq\nr = cq.Workplane().box(1, 1, 1).faces('>Z')", "empty_mesh"),
        (
            "import cadquery as cq\nr = cq.Workplane().newObject([cq.Workplane().box(1, 1, 1).shells().val()])",
            "invalid_solid",
        ),
        ("import cadquery as cq\nr = cq.Workplane().box(1, 1)", "runtime"),
        ("import cadquery as cq\nr = cq.Workplane(", "syntax"),
        ("", "no_result"),
        ("import cadquery as cq\nimport math\nr = cq.Workplane().box(math.pi, 1, 1)", "ok"),
        ("import cadquery\nr = cadquery.Solid.makeBox(1, 1, 1)", "ok"),
        ("import cadquery as cq\nr = cq.Workplane().pushPoints([(0, 0), (5, 0)]).box(1, 1, 1)", "ok"),
    ],
)
def test_code_of_a_program(checked, program, code):
    found = checked.run(program)
    assert found.code == code, found.message


def test_published_rule_takes_an_open_shell(checked):
    shell = "import cadquery as cq\nr = cq.Workplane().newObject([cq.Workplane().box(1, 1, 1).shells().val()])"
    assert checked.run(shell, check_solid=False).ok


def test_of_several_objects_the_first_counts(checked):
    found = checked.run(
        "import cadquery as cq\nr = cq.Workplane().pushPoints([(0, 0), (5, 0)]).box(1, 1, 1, combine=False)"
    )
    assert found.volume == pytest.approx(1)


def test_map_keeps_the_order(checked):
    programs = [f"import cadquery as cq\nr = cq.Workplane().box({i + 1}, 1, 1)" for i in range(6)]
    assert [round(found.volume) for found in checked.map(programs)] == [1, 2, 3, 4, 5, 6]


# --------------------------------------------------------------------------------------
# Servers, keepers and parents that are ended
# --------------------------------------------------------------------------------------

SLEEPER = "import time; time.sleep(60)"


def end_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while is_running(pid):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def mortal():
    with Sandbox(workers=2, limits=SandboxLimits(seconds=60)) as sandbox:
        yield sandbox


def test_programs_do_not_notice_keepers_that_end_while_they_are_idle(mortal):
    """One, all, and the server with all of them."""
    server = mortal._process.pid
    assert settled(server, 2) == 2
    for victims in (descendants(server)[:1], descendants(server), [server]):
        for pid in filter(is_running, victims):
            end_process(pid)
        assert [found.code for found in mortal.map([BOX] * 4)] == ["ok"] * 4
    assert mortal._process.pid != server and settled(mortal._process.pid, 2) == 2


def test_a_keeper_that_ends_while_its_program_runs_is_a_crash_and_is_replaced(mortal):
    with ThreadPoolExecutor(4) as pool:
        endless = [pool.submit(mortal.run, "while True: pass") for _ in range(2)]
        assert settled(mortal._process.pid, 4) == 4  # two keepers, two programs
        waiting = [pool.submit(mortal.run, BOX) for _ in range(2)]
        for pid in descendants(mortal._process.pid):
            if is_running(pid):
                end_process(pid)
        assert [found.result(60).code for found in endless] == ["crash", "crash"]
        assert [found.result(60).code for found in waiting] == ["ok", "ok"]
    assert settled(mortal._process.pid, 2) == 2


def test_nobody_waits_for_a_keeper_that_is_ended(mortal):
    """Several threads wait for two workers while one of these is killed again and again: all get answers."""
    with ThreadPoolExecutor(8) as pool:
        programs = [pool.submit(mortal.run, BOX) for _ in range(24)]
        for _ in range(4):
            time.sleep(0.2)
            for pid in descendants(mortal._process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
        codes = [program.result(timeout=60).code for program in programs]
    assert set(codes) <= {"ok", "crash"} and codes.count("crash") <= 4


def test_a_machine_on_which_keepers_cannot_live_blames_no_program(monkeypatch):
    monkeypatch.setattr("dsr_toolkit.cad.sandbox.GRACE_SECONDS", 0)
    with Sandbox(workers=1, limits=SandboxLimits(seconds=0.2)) as sandbox:
        assert settled(sandbox._process.pid, 1) == 1
        os.kill(sandbox._process.pid, signal.SIGSTOP)  # takes orders for keepers and makes none
        end_process(descendants(sandbox._process.pid)[0])
        with pytest.raises(RuntimeError, match="5 processes in a row ended before they began a program"):
            sandbox.run(BOX)


def test_after_closing_there_is_an_error():
    sandbox = Sandbox(workers=1, limits=LIMITS)
    sandbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run(BOX)
    sandbox.close()


@pytest.mark.parametrize("skip", [(), ("process namespace",)])
@pytest.mark.parametrize("end", ["parent", "group of the parent", "group of the server", "server"])
def test_nothing_lives_on_whoever_is_killed(end, skip, tmp_path):
    """A program that has cleared the signal it would get with its parent's death, as it can without the filter."""
    program = "import ctypes\nctypes.CDLL(None).prctl(1, 0)\n" + SLEEPER
    code = f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from dsr_toolkit.cad import Sandbox, SandboxLimits
        limits = SandboxLimits(seconds=50)
        sandbox = Sandbox(workers=1, limits=limits, policy=False, skip={["system-call filter", *skip]!r})
        print(sandbox._process.pid, flush=True)
        sandbox.run({program!r})
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    server = int(parent.stdout.readline())
    assert settled(server, 2) == 2  # keeper and program
    everyone = [server, *descendants(server)]
    time.sleep(0.5)  # the program has done its first lines
    kill, target = {
        "parent": (os.kill, parent.pid), "group of the parent": (os.killpg, parent.pid),
        "group of the server": (os.killpg, server), "server": (os.kill, server),
    }[end]  # fmt: skip
    kill(target, signal.SIGKILL)
    if "server" in end:
        parent.kill()  # which would start another
    parent.wait()
    for _ in range(100):
        left = [pid for pid in everyone if is_running(pid)]
        if not left:
            break
        time.sleep(0.05)
    assert not left


def test_interrupting_waits_for_no_program():
    sandbox = Sandbox(workers=2, limits=SandboxLimits(seconds=60), policy=False)
    answers = sandbox.map([BOX, SLEEPER, SLEEPER, SLEEPER])
    assert next(answers).ok
    start = time.monotonic()
    answers.close()
    sandbox.close()
    assert time.monotonic() - start < 2


# --------------------------------------------------------------------------------------
# Damaged answers
# --------------------------------------------------------------------------------------

SEEN = {
    "timeout": False,
    "oversize": False,
    "signal": 0,
    "status": 0,
    "seconds": 0.1,
    "stage": "check",
    "brep": 4,
    "notes": [],
}


def frame(header, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + len(body).to_bytes(8, "little") + text + body + b"brep"


def triangle(
    vertices=((0, 0, 0), (1, 0, 0), (0, 1, 0)), faces=((0, 1, 2),), solids=(0,), said=b"3", volume=b"1.0"
) -> bytes:
    header = b'{"code": "ok", "message": "", "vertices": %s, "faces": 1, "volume": %s}' % (said, volume)
    arrays = (np.array(vertices, np.float64), np.array(faces, np.int32), np.array(solids, np.int32))
    return frame(header, b"".join(array.tobytes() for array in arrays))


DAMAGED = {
    "short": b"\xff" * 9, "noise": b"\xff" * 40, "nothing said": frame({"code": "ok"}), "no code": frame({}),
    "unknown code": frame({"code": "surprise", "message": ""}), "a list": frame([1]), "a number": frame(7),
    "message of another type": frame({"code": "runtime", "message": {"a": 1}}),
    "more vertices than sent": triangle(vertices=((0, 0, 0),) * 4), "longer": triangle() + b"more",
    "shorter": triangle()[:-5],
    "infinite vertex count": triangle(said=b"1e999"),
    "no number of vertices": triangle(said=b"NaN"),
    "negative count": frame({"code": "ok", "vertices": -1, "faces": 1, "volume": 1}),
    "face of a vertex that is not there": triangle(faces=((0, 1, 3),)), "negative face": triangle(faces=((0, -1, 2),)),
    "negative solid": triangle(solids=(-1,)), "volume of another type": triangle(volume=b"[]"),
    "infinite volume": triangle(volume=b"Infinity"), "volume of 400 digits": triangle(volume=b"1" * 400),
    "volume of 5000 digits": triangle(volume=b"1" * 5000), "no length": b"\x00\x00\x00\x10" + b"x" * 50,
    "nested deeply": frame(b"[" * 4000),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_answers_are_crashes(name):
    assert judge(SEEN, DAMAGED[name], 1).code == "crash"


def test_answers_are_checked_by_the_parent():
    found = judge(SEEN, triangle(), 1)
    assert found.ok and found.brep == b"brep"
    assert judge(SEEN, triangle(vertices=((0, 0, float("nan")), (1, 0, 0), (0, 1, 0))), 1).code == "invalid_solid"
    assert judge(SEEN, triangle(vertices=((0, 0, 1e300), (1, 0, 0), (0, 1, 0))), 1).code == "invalid_solid"
    assert judge(SEEN, triangle(vertices=((0, 0, 0), (1, 0, 0), (2, 0, 0))), 1).code == "empty_mesh"


def test_a_programs_own_word_is_not_taken_for_a_solid():
    assert judge({**SEEN, "stage": "program"}, triangle(), 1).code == "crash"


# --------------------------------------------------------------------------------------
# Confinements that a machine lacks
# --------------------------------------------------------------------------------------


def test_a_machine_without_user_namespaces_is_refused_by_name():
    """In a namespace where no further user namespace may be made, as on hardened machines."""
    code = f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from dsr_toolkit.cad import ConfinementError, Sandbox
        try:
            Sandbox(workers=1)
        except ConfinementError as error:
            print("refused:", *sorted(error.missing), error, sep="|")
        with Sandbox(workers=1, allow_missing="all") as sandbox:
            print("waived:", *sorted(sandbox.missing), sandbox.run({BOX!r}).code, sep="|")
    """
    script = f'echo 0 > /proc/sys/user/max_user_namespaces; exec {sys.executable} -c "$0"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("this machine gives no user namespaces to begin with")
    refused, waived = done.stdout.splitlines()
    assert "refused:|network namespace|private root|process limit|process namespace|user namespace|" in refused
    assert "user namespace (" in refused and "--allow-missing" in refused
    assert waived.startswith("waived:|") and waived.endswith("|ok")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFINEMENTS)
def test_every_confinement_can_be_left_out(name):
    """What the others hold without it; descendants are ended without a process namespace too."""
    with Sandbox(workers=1, limits=LIMITS, skip=[name], policy=False) as sandbox:
        assert sandbox.run(BOX).ok
        assert sandbox.run("import time; time.sleep(60)").code == "timeout"
        assert settled(sandbox._process.pid, 1) == 1


@pytest.mark.parametrize(
    "machine, header", [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_numbers_of_system_calls_are_those_of_the_kernel(machine, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path}")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
    listed = syscalls.ALLOWED[machine] | syscalls.GUARDED[machine]
    assert listed == {name: known[name] for name in listed}
    never = "memfd_secret kcmp modify_ldt tkill kill rt_sigqueueinfo rt_tgsigqueueinfo ptrace bpf unshare prctl execve"
    assert not set(never.split()) & set(listed)


def test_descendants_are_ended_without_namespaces(tmp_path):
    """Only limits, session and reaping are left: a detached grandchild is still found and ended."""
    program = (
        f"import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(1.5); open('{tmp_path}/PWNED', 'w')"
        + VALID_R
    )
    with Sandbox(workers=1, limits=LIMITS, skip=CONFINEMENTS, policy=False) as sandbox:
        assert sandbox.run(program).ok
        assert settled(sandbox._process.pid, 1) == 1
    time.sleep(2)
    assert list(tmp_path.iterdir()) == []


def test_unknown_confinements_are_refused():
    with pytest.raises(ValueError, match="no confinement 'walls'"):
        Sandbox(workers=1, skip=["walls"])


@pytest.mark.parametrize("settings", [{"seconds": 0}, {"memory": 2**20}])
def test_limits_that_run_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SandboxLimits(**settings)


def test_closing_ends_every_process():
    sandbox = Sandbox(workers=2, limits=LIMITS)
    assert settled(sandbox._process.pid, 2) == 2
    processes = descendants(sandbox._process.pid)
    sandbox.close()
    time.sleep(0.3)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_a_server_that_does_not_start_in_time_says_why_and_what_to_do(monkeypatch):
    from dsr_toolkit.cad import sandbox

    monkeypatch.setattr(sandbox, "STARTUP_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"did not start within 0\.01 s: it reads CadQuery.*Try again"):
        Sandbox(workers=1, confined=False)


def test_refusal_without_cadquery_names_the_extra():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dsr_toolkit.cad import sandbox\n"
        "real = sandbox.subprocess.Popen\n"
        "hide = 'import sys; sys.modules[\\'cadquery\\'] = None; '\n"  # as if it were not installed
        "sandbox.subprocess.Popen = lambda a, **k: real([*a[:3], hide + a[3], *a[4:]], **k)\n"
        "try: sandbox.Sandbox(workers=1)\nexcept (ImportError, RuntimeError) as error: print(type(error).__name__, "
        "error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError" in done.stdout and "[cad]" in done.stdout


def test_confinement_error_says_how_to_waive():
    error = ConfinementError({"user namespace": "unshare: Operation not permitted"})
    assert "user namespace (unshare: Operation not permitted)" in str(error) and "allow_missing" in str(error)
