"""Malicious, runaway and broken programs, each with the policy check and, to prove the confinement itself, without it."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cadquery")

from dsr_toolkit.cad import ConfinementError, Execution, Sandbox, SandboxLimits, check_program  # noqa: E402
from dsr_toolkit.cad.confinement import CONFINEMENTS  # noqa: E402
from dsr_toolkit.cad.sandbox import _judge, _parse  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def confinements():
    """Hostile programs are run where every confinement can be had, and nowhere else."""
    try:
        Sandbox(workers=1).close()
    except ConfinementError as error:
        pytest.skip(str(error))


LIMITS = SandboxLimits(seconds=1.5)
BOX = "import cadquery as cq\nr = cq.Workplane('XY').box(2, 3, 4)"
VALID_R = "\nimport cadquery as cq\nr = cq.Workplane('XY').box(1, 1, 1)"

# name: (program, code with the policy check, codes without it). "ok" without it: what it tried did nothing, and the
# solid is the true one. `{folder}` is a folder outside with the file secret.stl; PWNED must never appear there.
ATTACKS = {
    "os.system": ("import os; os.system('touch {folder}/PWNED')" + VALID_R, "policy", {"ok"}),
    "subprocess": ("__import__('subprocess').run(['touch', '{folder}/PWNED'])" + VALID_R, "policy", {"runtime"}),
    "open": ("open('{folder}/PWNED', 'w').write('x')" + VALID_R, "policy", {"runtime"}),
    "open in the working folder": ("open('PWNED', 'w').write('x')" + VALID_R, "policy", {"ok"}),
    "subclass walk": (
        "p = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen']\n"
        "import subprocess\np = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen']\n"
        "p[0](['touch', '{folder}/PWNED']).wait()", "policy", {"runtime"},
    ),
    "builtins of a module": (
        "import cadquery as cq\ncq.occ_impl.shapes.__builtins__['open']('{folder}/PWNED', 'w')", "policy", {"runtime"}
    ),
    "globals of a method": (
        "import cadquery as cq\ncq.Workplane.__init__.__globals__['__builtins__']['open']('{folder}/PWNED', 'w')", "policy",
        {"runtime"},
    ),
    "exporter": (BOX + "\ncq.exporters.export(r, '{folder}/PWNED.step')", "policy", {"ok", "runtime"}),
    "importer": ("import cadquery as cq\nr = cq.importers.importStep('/etc/passwd')", "policy", {"runtime", "no_result"}),
    "reading the ground truth": (
        "data = open('{folder}/secret.stl', 'rb').read()" + VALID_R, "policy", {"runtime"}
    ),
    "listing files": ("import os\nassert not any(n for n in os.listdir('/') if n != 'work')\nos.listdir('{folder}')", "policy", {"runtime"}),
    "endless loop": ("while True: pass", "policy", {"timeout"}),
    "ignored SIGTERM": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "policy", {"timeout"}
    ),
    "detached grandchild": (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3); open('{folder}/PWNED', 'w')" + VALID_R, "policy",
        {"runtime"},
    ),
    "fork bomb": ("import os\nwhile True: os.fork()", "policy", {"runtime"}),
    "thread bomb": (
        "import threading, time\nfor i in range(100000): threading.Thread(target=time.sleep, args=(60,)).start()", "policy",
        {"runtime", "timeout", "memory", "crash"},
    ),
    "huge list": ("x = [0] * 10**10" + VALID_R, "policy", {"memory"}),
    "long loop": ("import cadquery as cq\nfor i in range(10**9): r = cq.Workplane('XY').box(1, 1, 1)", "policy", {"timeout"}),
    "long loop, written out": (
        "import cadquery as cq\nfor i in range(1000000000): r = cq.Workplane('XY').box(1, 1, 1)", "timeout", {"timeout"}
    ),
    "huge text": ("x = '9' * 10**10" + VALID_R, "policy", {"memory"}),
    "deep recursion": ("def f(): return f()\nf()", "policy", {"runtime"}),
    "deep recursion of lambdas": ("f = lambda g: g(g)\nf(f)", "runtime", {"runtime"}),
    "huge power": ("x = 10**10**8" + VALID_R, "policy", {"timeout", "memory"}),
    "array of cut cylinders": (
        "import cadquery as cq\nr = cq.Workplane().box(1000, 1000, 5).faces('>Z').workplane().rarray(4, 4, 200, 200).hole(1)",
        "timeout", {"timeout"},
    ),
    "twist of many turns": (
        "import cadquery as cq\nr = cq.Workplane().polyline([(i % 7, i % 11) for i in range(3000)]).close().twistExtrude(100, 36000000)",
        "timeout", {"timeout", "runtime", "memory", "crash"},
    ),
    "many spheres": (
        "import cadquery as cq\nr = cq.Workplane().rarray(3, 3, 60, 60).sphere(2)", "timeout", {"timeout"}
    ),
    "boolean of thousands": (
        "import cadquery as cq\nr = cq.Workplane().box(1, 1, 1)\nfor i in range(5000): r = r.union(cq.Workplane().box(1, 1, 1).translate((i * 0.3, i % 7, 0)))",
        "timeout", {"timeout"},
    ),
    "degenerate arc": ("import cadquery as cq\nr = cq.Workplane().threePointArc((1, 0), (2, 0)).close().extrude(1)", "runtime", {"runtime"}),
    "self-intersecting sweep": (
        "import cadquery as cq\np = cq.Workplane('XZ').spline([(0, 0), (5, 5), (0, 5), (5, 0)])\nr = cq.Workplane().circle(3).sweep(p)",
        None, None,  # whatever the kernel makes of it, it must come back
    ),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "policy", {"crash"}),
    "abort": ("import os; os.abort()", "policy", {"crash"}),
    "helper names": ("def compound_to_mesh(c): return 1" + VALID_R, "policy", {"ok"}),
    "class with val": ("class C:\n    def val(self): return 1\nr = C()", "policy", {"no_result"}),
    "patched tessellate": (
        "import cadquery as cq\ncq.Shape.tessellate = lambda *a: ([], [])\ncq.Shape.Volume = lambda s: 7.0" + VALID_R, "policy", {"ok"}
    ),
    "sys.exit": ("import sys; sys.exit(0)" + VALID_R, "policy", {"runtime"}),
    "SystemExit": ("raise SystemExit" + VALID_R, "policy", {"runtime"}),
    "os._exit": (BOX + "\nimport os; os._exit(0)", "policy", {"no_result"}),
    "imitated result channel": (
        "import os\nfor d in (1, 2, *range(3, 40)):\n    try: os.write(d, b'{{\"code\": \"ok\"}}' * 9)\n    except OSError: pass\nos._exit(0)",
        "policy", {"no_result"},
    ),
    "imitated standard output": ("print('{{\"code\": \"ok\"}}')", "no_result", {"no_result"}),
    "a gigabyte of prints": ("for i in range(1024): print('x' * 1048576)", "policy", {"no_result", "timeout"}),
    "network": ("import socket; socket.create_connection(('1.1.1.1', 80), 1)", "policy", {"runtime"}),
    "listening": ("import socket; s = socket.socket(); s.bind(('', 45678)); s.listen()", "policy", {"runtime"}),
    "local socket": ("import socket; socket.socketpair()", "policy", {"runtime"}),
    "environment": ("import os\nif not os.environ: raise ValueError('empty')" + VALID_R, "policy", {"runtime"}),
    "killing everything": ("import os; os.kill(-1, 9)" + VALID_R, "policy", {"runtime"}),
    "tracing": ("import ctypes\nif ctypes.CDLL(None).ptrace(16, 2, 0, 0) < 0: raise OSError('refused')", "policy", {"runtime"}),
    "mounting": (
        "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/work', b'tmpfs', 0, 0) < 0: raise OSError('refused')", "policy", {"runtime"}
    ),
    "new namespace": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError('refused')", "policy", {"runtime"}),
    "filling the disk": (
        "for i in range(9):\n    with open(f'f{{i}}', 'wb') as f:\n        for j in range(40): f.write(bytes(1 << 20))", "policy", {"runtime"}
    ),
    "one large file": ("with open('f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "policy", {"runtime", "crash"}),
    "many open files": ("files = [open('f', 'w') for i in range(1000)]", "policy", {"runtime"}),
    "patched box": ("import cadquery as cq\ncq.Workplane.box = None", "policy", {"no_result"}),
    "null byte": ("x = '\0'", "syntax", {"syntax"}),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000, "syntax", {"syntax", "memory", "runtime"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def checked():
    with Sandbox(workers=2, limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def unchecked():
    with Sandbox(workers=2, limits=LIMITS, policy=False) as sandbox:
        yield sandbox


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [d for child in children for d in descendants(int(child))]


@dataclass
class Outcome:
    found: Execution
    following: Execution  # of an ordinary program right after the attack, on a sandbox with a single worker
    files: list[str]  # in the folder outside
    processes: int  # of the sandbox's server


def attack(policy: bool, folder: Path) -> dict[str, Outcome]:
    """Every attack, each followed by an ordinary program; two halves side by side, on a worker each."""

    def half(names: list[str]) -> dict[str, Outcome]:
        outcomes = {}
        with Sandbox(workers=1, limits=LIMITS, policy=policy) as sandbox:
            for name in names:
                outside = folder / name.replace(" ", "_")
                outside.mkdir(parents=True)
                (outside / "secret.stl").write_text("solid")
                found = sandbox.run(ATTACKS[name][0].format(folder=outside))
                following = sandbox.run(BOX)
                files = sorted(path.name for path in outside.iterdir())
                outcomes[name] = Outcome(found, following, files, len(descendants(sandbox._process.pid)))
        return outcomes

    names = list(ATTACKS)
    with ThreadPoolExecutor(2) as pool:
        return {name: o for part in pool.map(half, (names[::2], names[1::2])) for name, o in part.items()}


@pytest.fixture(scope="module")
def with_policy(tmp_path_factory):
    return attack(True, tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="module")
def without_policy(tmp_path_factory):
    return attack(False, tmp_path_factory.mktemp("unchecked"))


def assert_unharmed(outcome: Outcome) -> None:
    """No file outside, no process or socket left, and the next program runs as ever."""
    assert outcome.files == ["secret.stl"]
    assert outcome.processes == 1  # the worker
    assert outcome.following.ok and outcome.following.seconds < LIMITS.seconds
    assert np.ptp(outcome.following.vertices, axis=0).tolist() == [2, 3, 4]
    with socket.socket() as free:
        free.bind(("", 45678))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_with_policy_check(name, with_policy):
    outcome, expected = with_policy[name], ATTACKS[name][1]
    assert expected is None or outcome.found.code == expected, outcome.found.message
    assert_unharmed(outcome)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_without_policy_check(name, without_policy):
    found, expected = without_policy[name].found, ATTACKS[name][2]
    assert expected is None or found.code in expected, (found.code, found.message)
    if found.ok and VALID_R in ATTACKS[name][0]:  # never a forged solid
        assert (np.ptp(found.vertices, axis=0) == 1).all() and abs(found.volume - 1) < 1e-9
    assert_unharmed(without_policy[name])


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
    found = checked.run(BOX, step=True, scale=2.0, offset=(10, 0, 0))
    assert (found.code, found.volume) == ("ok", pytest.approx(24))
    assert found.vertices.dtype == np.float64 and found.faces.shape == (12, 3) and set(found.solids) == {0}
    assert found.step.startswith(b"ISO-10303-21")


def test_step_is_placed_where_it_was_asked_for(checked, tmp_path):
    from modeling_dsr.cad_solids import load_mesh

    (tmp_path / "part.step").write_bytes(checked.run(BOX, step=True, scale=2.0, offset=(10, 0, 0)).step)
    np.testing.assert_allclose(load_mesh(tmp_path / "part.step").bounds, [[8, -3, -4], [12, 3, 4]], atol=1e-6)


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


@pytest.mark.slow
def test_a_server_that_dies_is_replaced():
    with Sandbox(workers=1, limits=LIMITS) as sandbox:
        os.kill(descendants(sandbox._process.pid)[0], 9)
        assert sandbox.run(BOX).code == "crash"
        assert sandbox.run(BOX).ok


SEEN = {"timeout": False, "oversize": False, "signal": 0, "seconds": 0.1, "genuine": True}


def frame(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + body


def triangle(vertices=((0, 0, 0), (1, 0, 0), (0, 1, 0)), faces=((0, 1, 2),), **changes) -> bytes:
    header = {"code": "ok", "message": "", "vertices": 3, "faces": 1, "step": 0, "volume": 1.0, **changes}
    body = (
        np.array(vertices, np.float64).tobytes() + np.array(faces, np.int32).tobytes() + np.zeros(1, np.int32).tobytes()
    )
    return frame(header, body)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xff" * 40, frame({"code": "ok"}), frame({"code": "surprise"}), frame([1]), triangle(vertices=10**12, faces=0),
        triangle() + b"more", triangle()[:-4], triangle(faces=((0, 1, 3),)), triangle(faces=((0, -1, 2),)), triangle(volume="x"),
        triangle(volume=float("inf")), frame({"code": "ok", "vertices": -1, "faces": 1, "step": 0, "volume": 1}),
        b"\x00\x00\x00\x10" + b"x" * 50,
    ],
)  # fmt: skip
def test_damaged_answers_are_crashes(payload):
    assert _judge(SEEN, payload, LIMITS).code == "crash"


def test_answers_are_checked_by_the_parent():
    assert _parse(triangle(), {}).ok
    assert _parse(triangle(vertices=((0, 0, float("nan")), (1, 0, 0), (0, 1, 0))), {}).code == "invalid_solid"


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
    assert "refused:|network namespace|private root|process namespace|user namespace|" in refused
    assert "user namespace (" in refused and "--allow-missing" in refused
    assert waived.startswith("waived:|") and waived.endswith("|ok")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFINEMENTS)
def test_every_confinement_can_be_left_out(name):
    """What the others hold without it; descendants are ended without a process namespace too."""
    with Sandbox(workers=1, limits=LIMITS, skip=[name], policy=False) as sandbox:
        assert sandbox.run(BOX).ok
        assert sandbox.run("import time; time.sleep(60)").code == "timeout"
        assert len(descendants(sandbox._process.pid)) == 1


def test_descendants_are_ended_without_namespaces(tmp_path):
    """Only limits, session and reaping are left: a detached grandchild is still found and ended."""
    program = (
        f"import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(1.5); open('{tmp_path}/PWNED', 'w')"
        + VALID_R
    )
    with Sandbox(workers=1, limits=LIMITS, skip=CONFINEMENTS, policy=False) as sandbox:
        assert sandbox.run(program).ok
        assert len(descendants(sandbox._process.pid)) == 1
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
    processes = descendants(sandbox._process.pid)
    assert len(processes) == 2
    sandbox.close()
    time.sleep(0.3)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


# --------------------------------------------------------------------------------------
# Policy
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "import cadquery as cq\nw0=cq.Workplane('XY',origin=(0,0,-20))\nr=w0.sketch().rect(150,90).push([(-40,0),(45,10)]).circle(14,mode='s').finalize().extrude(35)",
        "import cadquery as cq\nr=cq.Workplane()" + ".union(cq.Workplane().box(1,1,1))" * 300,
        "import cadquery as cq\nfrom_here = [(i * 2, -i ** 2) for i in range(3)]\nr = cq.Workplane().polyline(from_here).close().extrude(1)",
        "import math\nx = 2 * math.pi if 1 < 2 else 0.5",
    ],
)
def test_ordinary_programs_keep_to_the_policy(program):
    check_program(program)


def test_refusal_without_cadquery_names_the_extra():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dsr_toolkit.cad import sandbox\n"
        "real = sandbox.subprocess.Popen\n"
        "hide = 'import sys; sys.modules[\\'cadquery\\'] = None; '\n"  # as if it were not installed
        "sandbox.subprocess.Popen = lambda a, **k: real([*a[:3], hide + a[3], *a[4:]], **k)\n"
        "try: sandbox.Sandbox(workers=1)\nexcept (ImportError, RuntimeError) as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError" in done.stdout and "[cad]" in done.stdout


def test_confinement_error_says_how_to_waive():
    error = ConfinementError({"user namespace": "unshare: Operation not permitted"})
    assert "user namespace (unshare: Operation not permitted)" in str(error) and "allow_missing" in str(error)
