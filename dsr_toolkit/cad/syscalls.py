"""The system calls that a program and the geometry kernel need; every other one is refused.

A seccomp filter in front of the kernel: an allowed call by number, some of them only with harmless arguments. What a
later kernel adds is refused because it is not listed.
"""

import ctypes
import errno
import os
import platform
import struct

# Files, memory, time, waiting and asking about oneself. Processes, programs, sockets, tracing, keys, namespaces,
# mounts, secret memory, queues and everything with a name that is not here do not exist for a program.
ALLOWED = {
    "x86_64": dict(
        read=0, write=1, close=3, fstat=5, lseek=8, mmap=9, mprotect=10, munmap=11, brk=12, rt_sigaction=13,
        rt_sigprocmask=14, rt_sigreturn=15, rt_sigpending=127, sigaltstack=131, pread64=17, pwrite64=18, readv=19,
        writev=20, access=21, faccessat=269, faccessat2=439, pipe=22, pipe2=293, select=23, pselect6=270, poll=7,
        ppoll=271, sched_yield=24, mremap=25, madvise=28, dup=32, dup2=33, dup3=292, nanosleep=35,
        clock_nanosleep=230, clock_gettime=228, clock_getres=229, gettimeofday=96, time=201, getpid=39, gettid=186,
        getppid=110, getuid=102, geteuid=107, getgid=104, getegid=108, exit=60, exit_group=231, wait4=61, uname=63,
        fsync=74, fdatasync=75, truncate=76, ftruncate=77, getdents=78, getdents64=217, getcwd=79,
        chdir=80, fchdir=81, rename=82, renameat=264, renameat2=316, mkdir=83, mkdirat=258, rmdir=84, unlink=87,
        unlinkat=263, open=2, openat=257, stat=4, lstat=6, newfstatat=262, statx=332, statfs=137, fstatfs=138,
        readlink=89, readlinkat=267, umask=95, utimensat=280, chmod=90, fchmod=91, fchmodat=268, getrlimit=97,
        getrusage=98, sysinfo=99, times=100, arch_prctl=158, futex=202, set_robust_list=273, get_robust_list=274,
        set_tid_address=218, rseq=334, restart_syscall=219, sched_getaffinity=204, sched_getparam=143,
        sched_getscheduler=145, sched_get_priority_max=146, sched_get_priority_min=147, getcpu=309, getrandom=318,
        membarrier=324, fadvise64=221,
    ),
    "aarch64": dict(
        read=63, write=64, close=57, fstat=80, lseek=62, mmap=222, mprotect=226, munmap=215, brk=214,
        rt_sigaction=134, rt_sigprocmask=135, rt_sigreturn=139, rt_sigpending=136, sigaltstack=132, pread64=67,
        pwrite64=68, readv=65, writev=66, faccessat=48, faccessat2=439, pipe2=59, pselect6=72, ppoll=73,
        sched_yield=124, mremap=216, madvise=233, dup=23, dup3=24, nanosleep=101, clock_nanosleep=115,
        clock_gettime=113, clock_getres=114, gettimeofday=169, getpid=172, gettid=178, getppid=173, getuid=174,
        geteuid=175, getgid=176, getegid=177, exit=93, exit_group=94, wait4=260, uname=160, fsync=82,
        fdatasync=83, truncate=45, ftruncate=46, getdents64=61, getcwd=17, chdir=49, fchdir=50, renameat=38,
        renameat2=276, mkdirat=34, unlinkat=35, openat=56, fstatat=79, statx=291, statfs=43, fstatfs=44,
        readlinkat=78, umask=166, utimensat=88, fchmod=52, fchmodat=53, getrlimit=163, getrusage=165, sysinfo=179,
        times=153, futex=98, set_robust_list=99, get_robust_list=100, set_tid_address=96, rseq=293,
        restart_syscall=128, sched_getaffinity=123, sched_getparam=121, sched_getscheduler=120,
        sched_get_priority_max=125, sched_get_priority_min=126, getcpu=168, getrandom=278, membarrier=283,
        fadvise64=223,
    ),
}  # fmt: skip
GUARDED = {
    "x86_64": dict(clone=56, clone3=435, tgkill=234, fcntl=72, ioctl=16, prlimit64=302),
    "aarch64": dict(clone=220, clone3=435, tgkill=131, fcntl=25, ioctl=29, prlimit64=261),
}
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
CLONE_THREAD = 0x00010000
TCGETS, FIONCLEX, FIOCLEX = 0x5401, 0x5450, 0x5451  # ioctl: is this a terminal, and inheritance by descriptor
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030  # fcntl, without owners and signals

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in what the filter is shown


def architecture() -> str | None:
    """This machine's, if its calls are listed."""
    machine = platform.machine()
    return machine if machine in ALLOWED else None


def filter_program(machine: str, own_process: int) -> list[tuple[int, int, int, int]]:
    """
    The filter as instructions (code, jump if true, jump if false, operand).

    Threads may be made, which the geometry kernel does, processes not: `clone3` hides its flags behind a pointer, so it
    does not exist, and the C library falls back to `clone`. A signal may go to the process itself, which is how it
    aborts.
    """
    guarded = GUARDED[machine]
    refuse = (RETURN, 0, 0, FAIL | errno.EPERM)
    allow = (RETURN, 0, 0, ALLOW)

    def guard(name: str, argument: int, *tests: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Allow the call if its argument (lower half) passes one of (jump code, operand)."""
        body = [(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
        for jump, operand in tests:
            body += [(jump, 0, 1, operand), allow]
        body.append(refuse)
        return [(JUMP_EQUAL, 0, len(body), guarded[name]), *body]

    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, AUDIT[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        program += [(JUMP_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    program += [(JUMP_EQUAL, 0, 1, guarded["clone3"]), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    program += guard("clone", 0, (JUMP_SET, CLONE_THREAD))
    program += guard("tgkill", 0, (JUMP_EQUAL, own_process))
    duplicating = (F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC)
    program += guard("fcntl", 1, *((JUMP_EQUAL, command) for command in duplicating))
    program += guard("ioctl", 1, (JUMP_EQUAL, TCGETS), (JUMP_EQUAL, FIOCLEX), (JUMP_EQUAL, FIONCLEX))
    program += guard("prlimit64", 0, (JUMP_EQUAL, 0))
    for number in ALLOWED[machine].values():
        program += [(JUMP_EQUAL, 0, 1, number), allow]
    return [*program, refuse]


def install_filter() -> None:
    """For this process, for good. It must have given up gaining privileges (`PR_SET_NO_NEW_PRIVS`)."""
    instructions = filter_program(architecture(), os.getpid())
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
