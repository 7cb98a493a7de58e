"""Malicious, runaway and broken programs, and what must come of them, with the policy check and, to prove the
confinement itself, without it. Run as a program, as whichever user, it prints the outcomes:
`python cad_attacks.py policy|free`."""

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dsr_toolkit.cad import Sandbox, SandboxLimits  # noqa: E402

LIMITS = SandboxLimits(seconds=4)  # enough for any of the programs that end, on a busy machine too
BOX = "import cadquery as cq\nr = cq.Workplane('XY').box(2, 3, 4)"
VALID_R = "\nimport cadquery as cq\nr = cq.Workplane('XY').box(1, 1, 1)"
# Takes hold of the channel of its own process, which full Python can, and says something else there.
FORGE = """\
import io, os, sys
frame = sys._getframe()
while 'channel' not in frame.f_locals: frame = frame.f_back
channel = frame.f_locals['channel']; send = channel.send
"""
OCP = """\
import cadquery as cq
from OCP.BRep import BRep_Builder
from OCP.TopoDS import TopoDS_Shell, TopoDS_Solid
from OCP.gp import gp_Pnt
box, builder, shell, solid = cq.Solid.makeBox(1, 1, 1), BRep_Builder(), TopoDS_Shell(), TopoDS_Solid()
builder.MakeShell(shell); builder.MakeSolid(solid)
"""
SYSCALL = """\
import ctypes, os
def call(*numbers):
    if ctypes.CDLL(None).syscall(*numbers) < 0: raise OSError('refused')
"""

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
        "import cadquery as cq\ncq.Workplane.__init__.__globals__['__builtins__']['open']('{folder}/PWNED', 'w')",
        "policy",
        {"runtime"},
    ),
    "exporter": (BOX + "\ncq.exporters.export(r, '{folder}/PWNED.step')\nr = cq.Workplane().box(1, 1, 1)", "policy", {"ok", "runtime"}),
    "importer": ("import cadquery as cq\nr = cq.importers.importStep('/etc/passwd')", "policy", {"runtime", "no_result"}),
    "reading the ground truth": (
        "data = open('{folder}/secret.stl', 'rb').read()" + VALID_R, "policy", {"runtime"}
    ),
    "listing files": ("import os\nassert not any(n for n in os.listdir('/') if n != 'work')\nos.listdir('{folder}')", "policy", {"runtime"}),
    "endless loop": ("while True: pass", "timeout", {"timeout"}),
    "ignored SIGTERM": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "policy", {"timeout"}
    ),
    "detached grandchild": (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3); open('{folder}/PWNED', 'w')" + VALID_R,
        "policy",
        {"runtime"},
    ),
    "fork bomb": ("import os\nwhile True: os.fork()", "policy", {"runtime"}),
    "thread bomb": (
        "import threading, time\nfor i in range(100000): threading.Thread(target=time.sleep, args=(60,)).start()",
        "policy",
        {"runtime", "timeout", "memory", "crash"},
    ),
    "huge list": ("x = [0] * 10**10" + VALID_R, "policy", {"memory"}),
    "long loop": ("import cadquery as cq\nfor i in range(10**9): r = cq.Workplane('XY').box(1, 1, 1)", "policy", {"timeout"}),
    "long loop, written out": (
        "import cadquery as cq\nfor i in range(1000000000): r = cq.Workplane('XY').box(1, 1, 1)", "timeout", {"timeout"}
    ),
    "huge text": ("x = '9' * 10**10" + VALID_R, "policy", {"memory"}),
    "deep recursion": ("def f(): return f()\nf()", "runtime", {"runtime"}),
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
    "helper names": ("def compound_to_mesh(c): return 1" + VALID_R, "ok", {"ok"}),
    "class with val": ("class C:\n    def val(self): return 1\nr = C()", "policy", {"no_result"}),
    "patched tessellate": (
        "import cadquery as cq\ncq.Shape.tessellate = lambda *a: ([], [])\ncq.Shape.Volume = lambda s: 7.0" + VALID_R,
        "policy", {"ok"}
    ),
    "sys.exit": ("import sys; sys.exit(0)" + VALID_R, "policy", {"runtime"}),
    "SystemExit": ("raise SystemExit" + VALID_R, "policy", {"runtime"}),
    "os._exit": (BOX + "\nimport os; os._exit(0)", "policy", {"no_result"}),
    "imitated result channel": (
        "import os\nfor d in (1, 2, *range(3, 40)):\n    try: os.write(d, b'{{\"code\": \"ok\"}}' * 9)\n    except OSError: pass\nos._exit(0)",
        "policy", {"crash"},
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
        "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/work', b'tmpfs', 0, 0) < 0: raise OSError('refused')",
        "policy", {"runtime"}
    ),
    "new namespace": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError('refused')", "policy", {"runtime"}),
    "filling the disk": (
        "for i in range(9):\n    with open(f'f{{i}}', 'wb') as f:\n        for j in range(40): f.write(bytes(1 << 20))",
        "policy", {"runtime"}
    ),
    "one large file": ("with open('f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "policy", {"runtime", "crash"}),
    "many open files": ("files = [open('f', 'w') for i in range(1000)]", "policy", {"runtime"}),
    "patched box": ("import cadquery as cq\ncq.Workplane.box = None", "policy", {"no_result"}),
    "null byte": ("x = '\0'", "syntax", {"syntax"}),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000, "syntax", {"syntax", "memory", "runtime"}),
    # ---- what the list lacked: full Python behind the policy, forged solids, descriptors, signals, processes left
    # behind
    "globals through a helper of cadquery": (
        "import cadquery as cq\nf = lambda: 0\ncq.utils.update_wrapper(f, cq.utils.currentframe, (), ('__globals__',))" + VALID_R,
        "policy", {"ok", "runtime"},
    ),
    "globals through wraps": (
        "import cadquery as cq\nf = cq.utils.wraps(cq.utils.currentframe, (), ('__globals__',))(lambda: 0)" + VALID_R,
        "policy", {"ok", "runtime"},
    ),
    "attributes through a format": ("x = '{{0.__class__}}'.format(1)" + VALID_R, "policy", {"ok"}),
    "attributes through a format string": ("x = f'{{(1).__class__}}'" + VALID_R, "policy", {"ok"}),
    "modules of cadquery by import": ("from cadquery import utils" + VALID_R, "policy", {"ok"}),
    "modules of cadquery by a dotted import": ("import cadquery.utils as cq" + VALID_R, "policy", {"ok"}),
    "frame of a generator": ("g = (x for x in [1])\nf = g.gi_frame.f_globals" + VALID_R, "policy", {"ok"}),
    "forged volume": (
        FORGE + "send({{'code': 'ok', 'message': '', 'vertices': 3, 'faces': 1, 'volume': 42.0}}, bytes(72), bytes(12), bytes(4))\nos._exit(0)",
        "policy", {"invalid_solid"},
    ),
    "forged answer after a solid": (
        FORGE + "import cadquery as cq\nb = io.BytesIO(); cq.Workplane().box(1, 1, 1).val().exportBin(b)\n"
        "send({{'code': 'ok', 'volume': 42.0, 'vertices': 8, 'faces': 12}}, b.getvalue())\nos._exit(0)", "policy",
        {"ok"},
    ),
    "shape that is cut off": (
        FORGE + "import cadquery as cq\nb = io.BytesIO(); cq.Workplane().box(1, 1, 1).val().exportBin(b)\n"
        "send({{'code': 'ok'}}, b.getvalue()[:-300])\nos._exit(0)", "policy", {"invalid_solid", "crash"},
    ),
    "shape with numbers changed": (
        FORGE + "import cadquery as cq, random\nb = io.BytesIO(); cq.Workplane().box(1, 1, 1).val().exportBin(b)\n"
        "b = bytearray(b.getvalue()); random.seed(3)\nfor i in range(60): b[random.randrange(400, len(b))] = "
        "random.randrange(256)\nsend({{'code': 'ok'}}, bytes(b))\nos._exit(0)", "policy",
        {"invalid_solid", "crash", "runtime", "memory", "timeout"},
    ),
    "open box declared closed": (
        OCP + "for face in box.Faces()[:3]: builder.Add(shell, face.wrapped)\nshell.Closed(True); builder.Add(solid, shell)\n"
        "solid.Closed(True)\nr = cq.Solid(solid)", "policy", {"invalid_solid"},
    ),
    "open box with huge tolerances": (
        OCP + "for face in box.Faces()[:3]: builder.Add(shell, face.wrapped)\nshell.Closed(True); builder.Add(solid, shell)\n"
        "from OCP.ShapeFix import ShapeFix_ShapeTolerance\nShapeFix_ShapeTolerance().SetTolerance(solid, 10.0)\nr = "
        "cq.Solid(solid)",
        "policy", {"invalid_solid"},
    ),
    "edges under huge tolerances": (
        OCP + "from OCP.ShapeFix import ShapeFix_ShapeTolerance\nfaces = [f.translate(cq.Vector(i / 4, 0, 0)) for i, f in enumerate(box.Faces())]\n"
        "for face in faces: builder.Add(shell, face.wrapped)\nbuilder.Add(solid, shell)\n"
        "ShapeFix_ShapeTolerance().SetTolerance(solid, 10.0)\nr = cq.Solid(solid)", "policy", {"invalid_solid"},
    ),
    "face that is elsewhere, under huge tolerances": (
        OCP + "from OCP.Geom import Geom_Plane\nfrom OCP.TopLoc import TopLoc_Location\nfrom OCP.gp import gp_Dir\n"
        "from OCP.ShapeFix import ShapeFix_ShapeTolerance\nface = box.faces('>Z')\n"
        "builder.UpdateFace(face.wrapped, Geom_Plane(gp_Pnt(0, 0, 4), gp_Dir(0, 0, 1)), TopLoc_Location(), 1e-7)\n"
        "ShapeFix_ShapeTolerance().SetTolerance(box.wrapped, 10.0)\nr = box", "policy", {"invalid_solid"},
    ),
    "faces that are only a mesh": (
        OCP + "from OCP.TopoDS import TopoDS_Face\nfrom OCP.BRep import BRep_Tool\nfrom OCP.TopLoc import TopLoc_Location\n"
        "box.mesh(0.1)\nfor face in box.Faces():\n    bare = TopoDS_Face()\n"
        "    builder.MakeFace(bare, BRep_Tool.Triangulation_s(face.wrapped, TopLoc_Location()))\n    "
        "builder.Add(shell, bare)\nshell.Closed(True); builder.Add(solid, shell)\nr = cq.Solid(solid)", "policy",
        {"invalid_solid"},
    ),
    "mesh of another solid": (
        OCP + "from OCP.BRep import BRep_Tool\nfrom OCP.TopLoc import TopLoc_Location\nbox.mesh(0.1)\n"
        "for face in box.Faces():\n    mesh = BRep_Tool.Triangulation_s(face.wrapped, TopLoc_Location())\n"
        "    for i in range(1, mesh.NbNodes() + 1): mesh.SetNode(i, mesh.Node(i).Scaled(gp_Pnt(0, 0, 0), 9))\nr = box",
        "policy", {"ok"},
    ),
    "shape under a scaling location": (
        OCP + "from OCP.gp import gp_Trsf\nfrom OCP.TopLoc import TopLoc_Location\nt = gp_Trsf(); t.SetScaleFactor(9)\n"
        "r = cq.Solid(box.wrapped.Located(TopLoc_Location(t), False))", "policy", {"invalid_solid"},
    ),
    "face of no solid, which the kernel counts as volume": (
        "import cadquery as cq\nbox, large = cq.Solid.makeBox(1, 1, 1), cq.Solid.makeBox(50, 50, 50)\n"
        "r = cq.Compound.makeCompound([box, large.faces('>Z').moved(cq.Location((0, 0, 100)))])", "invalid_solid",
        {"invalid_solid"},
    ),
    "inside out beside a larger one": (
        OCP + "turned = cq.Solid(box.wrapped.Reversed()).moved(cq.Location((9, 0, 0)))\n"
        "r = cq.Compound.makeCompound([cq.Solid.makeBox(3, 3, 3), turned])", "policy", {"invalid_solid"},
    ),
    "inside out": (OCP + "r = cq.Solid(box.wrapped.Reversed())", "policy", {"invalid_solid"}),
    "answer and work on": (
        FORGE + "import cadquery as cq\nb = io.BytesIO(); cq.Workplane().box(1, 1, 1).val().exportBin(b)\n"
        "send({{'code': 'ok'}}, b.getvalue())\nwhile True: pass", "policy", {"ok"},
    ),
    "half an answer": (FORGE + "import os, time\nos.write(channel.descriptor, b'1234')\ntime.sleep(60)", "policy", {"timeout"}),
    "an endless answer": (FORGE + "import os\nwhile True: os.write(channel.descriptor, bytes(1 << 20))", "policy", {"memory", "timeout"}),
    "closed descriptors": ("import os; os.closerange(0, 64)" + VALID_R, "policy", {"crash"}),
    "closed descriptors and an exit": ("import os; os.closerange(0, 64); os._exit(0)", "policy", {"no_result"}),
    "mode of the null device": ("import os\nfor d in range(3): os.fchmod(d, 0)" + VALID_R, "policy", {"ok"}),
    "being root": (
        "import os\nassert os.getuid() == os.getgid() == 65534 and not set(os.getgroups()) - {{65534}}\nos.setuid(0)",
        "policy", {"runtime"}
    ),
    "400 threads": (
        "import threading, time\ntry:\n    for started in range(400): threading.Thread(target=time.sleep, args=(9,), "
        "daemon=True).start()\nexcept RuntimeError: pass\nassert started < 64, 'started %d threads' % started" + VALID_R, "policy", {"ok"},
    ),
    "ending its keeper": ("import os\nfor pid in (1, os.getppid()): os.kill(pid, 9)", "policy", {"runtime"}),
    "stopping itself": ("import signal; signal.raise_signal(signal.SIGSTOP)" + VALID_R, "policy", {"timeout"}),
    "signals by descriptor": ("import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, 8, 1)", "policy", {"runtime"}),
    "living on without its keeper": (SYSCALL + "call(157, 1, 0)", "policy", {"runtime"}),
    "secret memory": (SYSCALL + "call(447, 0)", "policy", {"runtime"}),
    "comparing processes": (SYSCALL + "call(312, os.getpid(), os.getpid(), 0, 0, 0)", "policy", {"runtime"}),
    "descriptor tables": (SYSCALL + "call(154, 0, ctypes.create_string_buffer(16), 16)", "policy", {"runtime"}),
    "signal to a thread": (SYSCALL + "call(234, 1, 1, 9)", "policy", {"runtime"}),
    "queued signal": (SYSCALL + "call(129, 1, 9, ctypes.create_string_buffer(128))", "policy", {"runtime"}),
    "signal queued to a thread": (SYSCALL + "call(297, 1, 1, 9, ctypes.create_string_buffer(128))", "policy", {"runtime"}),
    "text that steers a terminal": (
        "import cadquery as cq\nr = cq.Workplane().workplaneFromTagged('\\x1b]0;owned\\x07\\n* 7: ok  chamfer x1000 0.0000')", "runtime", {"runtime"}
    ),
}  # fmt: skip


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it is gone
        return []
    return [child for child in children if is_running(child)] + [d for child in children for d in descendants(child)]


@dataclass
class Outcome:
    code: str
    message: str
    signal: int
    volume: float | None
    extents: list[float] | None
    following: str  # code of an ordinary program right after the attack, on a sandbox with a single worker
    following_extents: list[float] | None
    files: list[str]  # in the folder outside
    processes: int  # of the sandbox's server


def extents(found) -> list[float] | None:
    return (found.vertices.max(0) - found.vertices.min(0)).tolist() if found.ok else None


def settled(pid: int, count: int) -> int:
    """Number of descendants, once those that start or end have had the time to, on a slow machine too."""
    deadline = time.monotonic() + 30
    while (found := len(descendants(pid))) != count and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def attack(policy: bool, folder: Path) -> dict[str, Outcome]:
    """Every attack, each that is run followed by an ordinary program; two halves side by side, on a worker each."""

    def half(names: list[str]) -> dict[str, Outcome]:
        outcomes, following = {}, None
        with Sandbox(workers=1, limits=LIMITS, policy=policy) as sandbox:
            for name in names:
                outside = folder / name.replace(" ", "_")
                outside.mkdir(parents=True)
                (outside / "secret.stl").write_text("solid")
                found = sandbox.run(ATTACKS[name][0].format(folder=outside))
                if following is None or not policy or found.code not in ("policy", "syntax"):  # they never reach it
                    following = sandbox.run(BOX)
                files = sorted(path.name for path in outside.iterdir())
                outcomes[name] = Outcome(
                    found.code, found.message, found.signal, found.volume, extents(found), following.code,
                    extents(following), files, settled(sandbox._process.pid, 1),
                )  # fmt: skip
        return outcomes

    names = list(ATTACKS)
    with ThreadPoolExecutor(2) as pool:
        return {name: o for part in pool.map(half, (names[::2], names[1::2])) for name, o in part.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = attack(sys.argv[1] == "policy", Path(folder))
    print(json.dumps({name: asdict(outcome) for name, outcome in found.items()}))
