"""What Linux takes away from a process that runs a generated program.

Two steps. `enter` is called once, by the fork server before anything is forked: user, mount, network, IPC and host-name
namespaces of its own, and a root folder that holds nothing. `confine` is called by the child of one program: private
working folder, no privileges, a system-call filter, limits. The child starts in a process-number namespace of its own
(`fork`), whose end is the end of every process in it.

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

USER, MOUNT, NETWORK, PID, SYSCALLS = (
    "user namespace", "private root", "network namespace", "process namespace", "system-call filter"
)  # fmt: skip
CONFINEMENTS = (USER, MOUNT, NETWORK, PID, SYSCALLS)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 0x4000, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2

WORK = "work"  # the private folder of a program, below the root
WORK_SIZE, WORK_FILES = 64 * 2**20, 64


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


def enter(skip: frozenset[str] = frozenset()) -> list[Unavailable]:
    """
    Put this process and all it forks into namespaces of their own, with an empty root folder.

    Args:
        skip: names of confinements to leave out.

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
    attempt(MOUNT, _enter_private_root)
    attempt(PID, _probe_process_namespace)
    if SYSCALLS not in skip and _architecture() is None:
        missing.append(Unavailable(SYSCALLS, f"no list of system calls for {platform.machine()}"))
    return missing


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    # Only this user exists in there. Rights over the new namespaces are gained, over nothing outside.
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _enter_private_root() -> None:
    """A read-only root that holds one empty folder. What the programs need is imported, hence in memory."""
    _call("unshare", CLONE_NEWNS)
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    base = "/tmp" if os.path.isdir("/tmp") else os.getcwd()
    _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,nr_inodes=16,mode=0755")
    os.mkdir(f"{base}/{WORK}")
    os.mkdir(f"{base}/old")
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


# --------------------------------------------------------------------------------------
# For every program
# --------------------------------------------------------------------------------------


def fork(flags: int = 0) -> int:
    """`os.fork` whose child starts in new namespaces. The caller has one thread."""
    if not flags:
        return os.fork()
    api = ctypes.pythonapi
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
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


def confine(applied: frozenset[str], cpu_seconds: int, memory: int, file_bytes: int, keep: int, null: int) -> None:
    """
    Take everything away from this process, the child of one program, that a program does not need.

    Args:
        applied: the confinements that `enter` gave.
        keep: file descriptor of the result channel; all others are closed.
        null: file descriptor of the null device, for input, output and errors.
    """
    os.setsid()
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)
    for name in list(os.environ):
        del os.environ[name]
    for number in range(1, signal.NSIG):  # handlers of the server are none of the program's business
        if number in signal.valid_signals() and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    if MOUNT in applied:
        options = f"size={WORK_SIZE},nr_inodes={WORK_FILES},mode=0700"
        _mount("tmpfs", f"/{WORK}", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
        os.chdir(f"/{WORK}")
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        resource.RLIMIT_NOFILE: (32, 32),
        resource.RLIMIT_NPROC: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, values in limits.items():
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            values = tuple(min(value, hard) for value in values)
        resource.setrlimit(kind, values)
    if sys.platform == "linux":
        _drop_privileges()
    if SYSCALLS in applied:
        _filter_system_calls()


def _drop_privileges() -> None:
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and ctypes.get_errno() == errno.EINVAL:
            break
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


# Process creation, programs, sockets, tracing, namespaces, mounts, kernel features with a history. Numbers per machine.
DENIED = {
    "x86_64": dict(
        fork=57, vfork=58, execve=59, execveat=322, socket=41, socketpair=53, connect=42, bind=49, listen=50, ptrace=101,
        process_vm_readv=310, process_vm_writev=311, kill=62, tkill=200, mount=165, umount2=166, pivot_root=155,
        chroot=161, unshare=272, setns=308, bpf=321, perf_event_open=298, keyctl=250, add_key=248, request_key=249,
        userfaultfd=323, io_uring_setup=425, io_uring_enter=426, io_uring_register=427, memfd_create=319, pidfd_open=434,
        pidfd_send_signal=424, pidfd_getfd=438, name_to_handle_at=303, open_by_handle_at=304, fsopen=430, move_mount=429,
        open_tree=428, mount_setattr=442, setsid=112, setpgid=109, init_module=175,
        finit_module=313, delete_module=176, kexec_load=246, reboot=169, swapon=167, syslog=103, acct=163, quotactl=179,
        shmget=29, msgget=68, semget=64, mq_open=240, personality=135, landlock_create_ruleset=444,
    ),
    "aarch64": dict(
        execve=221, execveat=281, socket=198, socketpair=199, connect=203, bind=200, listen=201, ptrace=117,
        process_vm_readv=270, process_vm_writev=271, kill=129, tkill=130, mount=40, umount2=39, pivot_root=41, chroot=51,
        unshare=97, setns=268, bpf=280, perf_event_open=241, keyctl=219, add_key=217, request_key=218, userfaultfd=282,
        io_uring_setup=425, io_uring_enter=426, io_uring_register=427, memfd_create=279, pidfd_open=434,
        pidfd_send_signal=424, pidfd_getfd=438, name_to_handle_at=264, open_by_handle_at=265, fsopen=430, move_mount=429,
        open_tree=428, mount_setattr=442, setsid=157, setpgid=154, init_module=105,
        finit_module=273, delete_module=106, kexec_load=104, reboot=142, swapon=224, syslog=116, acct=89, quotactl=60,
        shmget=194, msgget=186, semget=190, mq_open=180, personality=92, landlock_create_ruleset=444,
    ),
}  # fmt: skip
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
X32_BIT = 0x40000000

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def _architecture() -> str | None:
    machine = platform.machine()
    return machine if machine in DENIED else None


def _filter_system_calls() -> None:
    """
    Refuse the calls of `DENIED` with EPERM. Threads may be made, which the geometry kernel does, processes not: `clone3`
    hides its flags behind a pointer, so it does not exist, and the C library falls back to `clone`.
    """
    machine = _architecture()
    program = [
        (LOAD, 0, 0, 4),  # the calling convention
        (JUMP_EQUAL, 1, 0, AUDIT[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),  # the number
        *([(JUMP_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)] if machine == "x86_64" else []),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, FAIL | errno.ENOSYS),
        (JUMP_EQUAL, 0, 4, CLONE[machine]),
        (LOAD, 0, 0, 16),  # its first argument, lower half
        (JUMP_SET, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, FAIL | errno.EPERM),
    ]
    for number in DENIED[machine].values():
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | errno.EPERM)]
    program.append((RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(program), ctypes.addressof(buffer))
    _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0)


def become_reaper() -> None:
    """Orphaned descendants become this process's children, so that it can end them."""
    if sys.platform == "linux":
        _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
