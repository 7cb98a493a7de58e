"""What Linux takes away from a process that runs a generated program.

Three steps. `enter` is called once, by the fork server before anything is forked: user, mount, network, IPC and
host-name namespaces of its own, and a root folder that holds one font and one empty folder. `fork` starts a keeper as
the first process of a process-number namespace: whatever a program starts ends with its keeper, or when the keeper says
so. `confine` is called by the child of one program: private working folder, an identity that owns nothing, no
privileges, a limit of threads, a system-call filter, limits.

Plain system calls through ctypes: none of this is in Python's standard library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

from . import syscalls

USER, MOUNT, NETWORK, PID, TASKS, SYSCALLS = (
    "user namespace", "private root", "network namespace", "process namespace", "process limit", "system-call filter"
)  # fmt: skip
CONFINEMENTS = (USER, MOUNT, NETWORK, PID, TASKS, SYSCALLS)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 0x4000, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

NOBODY = 65534  # who a program is: an identity that owns no file
WORK = "work"  # the private folder of a program, below the root
WORK_SIZE, WORK_FILES = 64 * 2**20, 64
FONT = "font.ttf"  # beside it
TASK_LIMIT = 64  # processes and threads of a program


class Unavailable(OSError):
    """A confinement that this machine does not give; `name` is one of `CONFINEMENTS`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(function: str, *arguments) -> int:
    result = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


# --------------------------------------------------------------------------------------
# Once, in the fork server
# --------------------------------------------------------------------------------------


def enter(skip: frozenset[str], font: bytes, processes: int | None) -> list[Unavailable]:
    """
    Put this process and all it forks into namespaces of their own, with an almost empty root folder.

    Args:
        skip: names of confinements to leave out.
        font: content of the one font file that programs find.
        processes: file descriptor of /proc, opened before it disappears.

    Returns:
        What could not be had.
    """
    missing = []
    if sys.platform != "linux":
        return [
            Unavailable(name, f"Linux is needed, this is {sys.platform}") for name in CONFINEMENTS if name not in skip
        ]

    def attempt(name, step):
        if name in skip or any(failure.name == USER for failure in missing):
            return
        try:
            step()
        except (OSError, Unavailable) as error:
            missing.append(Unavailable(name, str(error)))

    attempt(USER, _enter_user_namespace)
    if missing:  # the others need the rights that it gives
        reason = "needs a user namespace"
        missing += [Unavailable(name, reason) for name in (MOUNT, NETWORK, PID) if name not in skip]
    attempt(NETWORK, lambda: _call("unshare", CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS))
    attempt(MOUNT, lambda: _enter_private_root(font))
    attempt(PID, _probe_process_namespace)
    if SYSCALLS not in skip and syscalls.architecture() is None:
        missing.append(Unavailable(SYSCALLS, f"no list of system calls for {platform.machine()}"))
    if TASKS not in skip:
        apart = USER not in skip and not any(failure.name == USER for failure in missing)
        if not _task_limit_holds(apart, processes):
            missing.append(Unavailable(TASKS, "more processes could be started than the limit allows"))
    return missing


def _enter_user_namespace() -> None:
    """
    Root's programs become nobody in there, which takes a second identity and hence a helper outside that grants it;
    ordinary users have one identity to give. Rights over the new namespaces are gained, over nothing outside.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _has_identity(NOBODY):
        os.setgroups([])
        _enter_with_helper(f"0 0 1\n{NOBODY} {NOBODY} 1", f"{group} {group} 1\n{NOBODY} {NOBODY} 1")
        return
    _call("unshare", CLONE_NEWUSER)
    _write_identities("/proc/self/", None, user, user, group, group)


def _has_identity(number: int) -> bool:
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def _enter_with_helper(users: str, groups: str) -> None:
    own = os.getpid()
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(go)
            os.read(ready, 1)
            for name, content in (("uid_map", users), ("gid_map", groups)):
                with open(f"/proc/{own}/{name}", "w") as file:
                    file.write(content)
            status = 0
        finally:
            os._exit(status)
    os.close(ready)
    try:
        _call("unshare", CLONE_NEWUSER)
    finally:
        os.close(go)
        status = os.waitpid(helper, 0)[1]
    if status:
        raise Unavailable(USER, "its identities could not be granted")


def _write_identities(folder: str, directory: int | None, user: int, outer_user: int, group: int, outer_group: int):
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {outer_user} 1"),
        ("gid_map", f"{group} {outer_group} 1"),
    ):
        descriptor = os.open(f"{folder}{name}", os.O_WRONLY, dir_fd=directory)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _enter_private_root(font: bytes) -> None:
    """A read-only root. What the programs need is imported, hence in memory, but for the font."""
    _call("unshare", CLONE_NEWNS)
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    base = "/tmp" if os.path.isdir("/tmp") else os.getcwd()
    _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, f"size={64 * 1024 + len(font)},nr_inodes=16,mode=0755")
    os.mkdir(f"{base}/{WORK}")
    os.mkdir(f"{base}/old")
    with open(f"{base}/{FONT}", "wb") as file:
        file.write(font)
    os.chdir(base)
    _call("pivot_root", b".", b"old")
    os.chdir("/")
    _call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount("none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _probe_process_namespace() -> None:
    pid = fork(CLONE_NEWPID)
    if pid == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    if os.waitpid(pid, 0)[1]:
        raise Unavailable(PID, "the first process of a new namespace is not number 1")


def _task_limit_holds(apart: bool, processes: int | None) -> bool:
    """Whether a child that has become nobody is kept from starting a fourth process when there may be three."""
    pid = os.fork()
    if pid == 0:
        started, held = [], False
        try:
            _become_nobody(apart, processes)
            _limit(resource.RLIMIT_NPROC, 3, 3)
            _drop_privileges()
            for _ in range(3):
                other = os.fork()
                if other == 0:
                    signal.pause()
                started.append(other)
        except BlockingIOError:
            held = True
        finally:
            for other in started:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            os._exit(0 if held else 1)
    return os.waitpid(pid, 0)[1] == 0


# --------------------------------------------------------------------------------------
# For every program
# --------------------------------------------------------------------------------------


def fork(flags: int = 0) -> int:
    """`os.fork` whose child starts in new namespaces. The caller has one thread."""
    if not flags:
        return os.fork()
    api = ctypes.pythonapi
    number = syscalls.GUARDED[platform.machine()]["clone"]
    api.PyOS_BeforeFork()
    pid = _libc.syscall(ctypes.c_long(number), ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)
    failed = ctypes.get_errno()
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(failed, f"clone: {os.strerror(failed)}")
    return pid


def confine(
    applied: frozenset[str], cpu_seconds: int, memory: int, file_bytes: int, keep: int, processes: int | None
) -> None:
    """
    Take everything away from this process, the child of one program, that a program does not need.

    Args:
        applied: the confinements that `enter` gave.
        keep: file descriptor of the result channel; all others are closed.
        processes: file descriptor of /proc.
    """
    os.setsid()
    for name in list(os.environ):
        del os.environ[name]
    for number in range(1, signal.NSIG):  # handlers of the server are none of the program's business
        if number in signal.valid_signals() and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    if MOUNT in applied:
        options = f"size={WORK_SIZE},nr_inodes={WORK_FILES},mode=0777"  # only this process sees it
        _mount("tmpfs", f"/{WORK}", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
        os.chdir(f"/{WORK}")
    if sys.platform == "linux":
        _become_nobody(USER in applied, processes)
    _close_descriptors(keep)
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _limit(resource.RLIMIT_AS, memory, memory)
    _limit(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
    _limit(resource.RLIMIT_NOFILE, 32, 32)
    _limit(resource.RLIMIT_NPROC, TASK_LIMIT, TASK_LIMIT)
    _limit(resource.RLIMIT_CORE, 0, 0)
    if sys.platform == "linux":
        _drop_privileges()
    if SYSCALLS in applied:
        syscalls.install_filter()


def _become_nobody(apart: bool, processes: int | None) -> None:
    """Give up root, then enter a user namespace of its own, in which no other program's threads are counted."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
        except OSError:  # granted by a helper: given up before; else nobody's to change
            pass
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:  # not an identity here; whether root's processes are limited has been tried
            pass
    if not apart or processes is None:
        return
    user, group = os.geteuid(), os.getegid()
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its entries in /proc are root's
    try:
        _call("unshare", CLONE_NEWUSER)
        _write_identities("self/", processes, NOBODY, user, NOBODY, group)
    except OSError:  # then it is counted with the others
        pass


def _close_descriptors(keep: int) -> None:
    """All but the channel. Input has ended; output goes into pipes of its own that nobody reads, hence fails
    quietly."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    ended, writer = os.pipe()
    os.close(writer)
    reader, unread = os.pipe()
    os.close(reader)
    for descriptor, number in ((ended, 0), (unread, 1), (unread, 2)):
        os.dup2(descriptor, number)
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)


def _limit(kind: int, soft: int, hard: int) -> None:
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _drop_privileges() -> None:
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    end_with_parent()
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and ctypes.get_errno() == errno.EINVAL:
            break
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def end_with_parent() -> None:
    """This process is killed when the one that forked it ends."""
    if sys.platform == "linux":
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_reaper() -> None:
    """Orphaned descendants become this process's children, so that it can end them."""
    if sys.platform == "linux":
        _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
