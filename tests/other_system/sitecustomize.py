"""Take away what Linux alone has, at the start of each interpreter that finds this file on ``PYTHONPATH``.

What is left is what Windows and macOS have in common: no `fcntl` and no `resource`, no ``/proc``, no directory that can
be opened, no open or mapped file that can be replaced or removed, and a standard output in Windows' old encoding. Files
are not opened as text without an encoding, whose default differs.
"""

import builtins
import contextlib
import errno
import io
import os
import shutil
import signal
import sys

import platformdirs.unix  # noqa: F401  before, as psutil: they have another way on each system
import psutil

HIDDEN = ("/proc", "/sys/fs/cgroup", "/dev/std", "/dev/fd")
PACKAGE = os.sep + "pydmobilenet" + os.sep
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
NAMES = {
    os: (
        *("sysconf", "sysconf_names", "sched_getaffinity", "sched_setaffinity", "process_cpu_count", "O_NOFOLLOW"),
        *("chown", "fchown", "lchown", "fchmod", "fork", "getuid", "geteuid", "getgid", "getegid", "mkfifo", "symlink"),
        *("killpg", "setsid", "getpgid", "getloadavg", "statvfs", "posix_fadvise", "sendfile", "pread"),
    ),
    psutil.Process: ("cpu_affinity",),  # macOS has none
    signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "setitimer", "pthread_kill", "pthread_sigmask"),
}
_open, _stat, _readlink, _listdir = os.open, os.stat, os.readlink, os.listdir
_text = io.open


def refuse(number, path):
    raise OSError(number, os.strerror(number), os.fspath(path))


def callers():
    """The files of the functions that are being called, from the innermost on."""
    frame = sys._getframe(2)
    while frame:
        yield frame.f_code.co_filename
        frame = frame.f_back


def hidden(path):
    """Whether a path is Linux's own. psutil, which has another way on each system, may see it."""
    return (
        isinstance(path, (str, os.PathLike))
        and os.fspath(path).startswith(HIDDEN)
        and not any("psutil" in file for file in callers())
    )


def is_directory(path):
    try:
        return not isinstance(path, int) and (_stat(path).st_mode & 0o170000) == 0o040000
    except (OSError, ValueError):
        return False


def open_descriptor(path, *arguments, **named):
    if hidden(path):
        refuse(errno.ENOENT, path)
    if is_directory(path):
        refuse(errno.EACCES, path)
    return _open(path, *arguments, **named)


def open_file(file, mode="r", buffering=-1, encoding=None, *arguments, **named):
    if hidden(file):
        refuse(errno.ENOENT, file)
    caller = next((path for path in callers() if "pathlib" not in path and path != __file__), "")
    if PACKAGE in caller and "b" not in mode and encoding is None:
        raise AssertionError(f"{file} is opened as text without an encoding, by {caller}")
    return _text(file, mode, buffering, encoding, *arguments, **named)


def in_use(path):
    """Whether this process has a file open or mapped, or a file below a directory."""
    path = os.path.realpath(os.fspath(path))
    used = []
    for number in _listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            used.append(_readlink(f"/proc/self/fd/{number}"))
    with _text("/proc/self/maps", encoding="utf-8") as file:
        used += [line.split(maxsplit=5)[-1].rstrip("\n") for line in file if line.count("/")]
    return any(name == path or name.startswith(path + os.sep) for name in used)


def guarded(function):
    def call(*paths, **named):
        for path in paths[:2]:
            if isinstance(path, (str, os.PathLike)) and in_use(path):
                refuse(errno.EACCES, path)
        return function(*paths, **named)

    return call


for module in MODULES:
    sys.modules[module] = None  # importing it raises ImportError
for owner, names in NAMES.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
os.open, builtins.open, io.open = open_descriptor, open_file, open_file
for name in ("replace", "rename", "remove", "unlink", "rmdir"):
    setattr(os, name, guarded(getattr(os, name)))
shutil._use_fd_functions = False  # as where directories cannot be opened
