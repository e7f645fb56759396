/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The filter of system calls: a list of those that are let through, some only with certain
 * arguments.  The others are as if the kernel did not have them (ENOSYS), which libraries are
 * prepared for, and the kernel logs them; but those that no part of the server or of a library has
 * any business with, and that somebody who has taken it over would want most, end the process.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "sandbox.h"

#ifdef HAVE_SECCOMP

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of a socket's type, without the flags. */
#define SOCKET_TYPE 0xf

/* Not to be made, new or by the by. */
#define NAMESPACES                                                                                 \
  (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |    \
   CLONE_NEWNET)

/* In every server.  Names that this machine or libseccomp does not know are left out. */
static const char *const always[] = {
  /* what is open */
  "read",
  "write",
  "readv",
  "writev",
  "pread64",
  "pwrite64",
  "preadv",
  "pwritev",
  "preadv2",
  "pwritev2",
  "lseek",
  "_llseek",
  "close",
  "close_range",
  "dup",
  "dup2",
  "dup3",
  "flock",
  "fstat",
  "fstat64",
  "fstatfs",
  "fstatfs64",
  "fsync",
  "fdatasync",
  "syncfs",
  "sync_file_range",
  "fallocate",
  "ftruncate",
  "ftruncate64",
  "fadvise64",
  "fadvise64_64",
  "readahead",
  "copy_file_range",
  "sendfile",
  "sendfile64",
  "splice",
  "pipe",
  "pipe2",
  "eventfd2",
  "cachestat",
  /* names and sizes; removing what was made is bounded by Landlock */
  "stat",
  "lstat",
  "stat64",
  "lstat64",
  "newfstatat",
  "fstatat64",
  "statx",
  "statfs",
  "statfs64",
  "access",
  "faccessat",
  "faccessat2",
  "readlink",
  "readlinkat",
  "getcwd",
  "unlink",
  "unlinkat",
  "rmdir",
  /* connections */
  "accept",
  "accept4",
  "recv",
  "recvfrom",
  "recvmsg",
  "recvmmsg",
  "shutdown",
  "getsockname",
  "getpeername",
  "getsockopt",
  /* waiting */
  "epoll_create",
  "epoll_create1",
  "epoll_ctl",
  "epoll_wait",
  "epoll_pwait",
  "epoll_pwait2",
  "poll",
  "ppoll",
  "ppoll_time64",
  "select",
  "_newselect",
  "pselect6",
  "pselect6_time64",
  "timerfd_create",
  "timerfd_settime",
  "timerfd_settime64",
  "timerfd_gettime",
  "nanosleep",
  "clock_nanosleep",
  "clock_nanosleep_time64",
  "clock_gettime",
  "clock_gettime64",
  "clock_getres",
  "clock_getres_time64",
  "gettimeofday",
  "time",
  "io_uring_enter",
  /* memory */
  "brk",
  "munmap",
  "mremap",
  "madvise",
  "mincore",
  "msync",
  "mlock",
  "mlock2",
  "munlock",
  "membarrier",
  /* threads and signals */
  "futex",
  "futex_time64",
  "futex_waitv",
  "futex_wake",
  "futex_wait",
  "set_robust_list",
  "get_robust_list",
  "rseq",
  "sched_yield",
  "sched_getaffinity",
  "sched_getparam",
  "sched_getscheduler",
  "getcpu",
  "gettid",
  "exit",
  "exit_group",
  "rt_sigaction",
  "rt_sigprocmask",
  "rt_sigreturn",
  "rt_sigpending",
  "rt_sigtimedwait",
  "rt_sigtimedwait_time64",
  "rt_sigsuspend",
  "sigreturn",
  "sigaltstack",
  "restart_syscall",
  "wait4",
  "waitid",
  "waitpid",
  /* who and where */
  "getpid",
  "getppid",
  "getpgrp",
  "getuid",
  "geteuid",
  "getgid",
  "getegid",
  "getresuid",
  "getresgid",
  "getgroups",
  "getuid32",
  "geteuid32",
  "getgid32",
  "getegid32",
  "capget",
  "uname",
  "sysinfo",
  "getrusage",
  "times",
  "getrandom",
  "getrlimit",
  "ugetrlimit",
  "umask",
  "chdir",
};

/* Lists of clients are watched (authz.c). */
static const char *const when_reading[] = {
  "getdents",      "getdents64",        "inotify_init",
  "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
};

static const char *const when_writing[] = {
  "rename", "renameat",   "renameat2", "link",   "linkat",    "truncate",
  "fchown", "truncate64", "fchownat",  "lchown", "utimensat",
};

static const char *const with_sockets[] = { "connect", "bind", "listen" };

/* Nothing here asks for these by mistake. */
static const char *const deadly[] = {
  "execve",
  "execveat",
  "ptrace",
  "process_vm_readv",
  "process_vm_writev",
  "kcmp",
  "pidfd_getfd",
  "process_madvise",
  "mount",
  "umount",
  "umount2",
  "move_mount",
  "open_tree",
  "fsopen",
  "fsconfig",
  "fsmount",
  "fspick",
  "mount_setattr",
  "pivot_root",
  "chroot",
  "setns",
  "unshare",
  "init_module",
  "finit_module",
  "delete_module",
  "kexec_load",
  "kexec_file_load",
  "bpf",
  "perf_event_open",
  "userfaultfd",
  "add_key",
  "request_key",
  "keyctl",
  "reboot",
  "swapon",
  "swapoff",
  "acct",
  "quotactl",
  "quotactl_fd",
  "iopl",
  "ioperm",
  "modify_ldt",
  "open_by_handle_at",
  "name_to_handle_at",
  "fanotify_init",
  "fanotify_mark",
  "lookup_dcookie",
  "settimeofday",
  "clock_settime",
  "clock_adjtime",
  "adjtimex",
  "sethostname",
  "setdomainname",
  "syslog",
  "vhangup",
  "personality",
  "setuid",
  "setgid",
  "setreuid",
  "setregid",
  "setresuid",
  "setresgid",
  "setgroups",
  "setfsuid",
  "setfsgid",
  "capset",
  "nfsservctl",
  "uselib",
  "ustat",
};

static const unsigned long devices[] = {
  FIONREAD,
  FIONBIO,
  FIOCLEX,
  TIOCGWINSZ,
  BLKGETSIZE64,
  BLKSSZGET,
  BLKPBSZGET,
  BLKDISCARD,
  BLKZEROOUT,
  BLKFLSBUF,
  BLKROGET,
  BLKALIGNOFF,
  BLKIOMIN,
  BLKIOOPT,
  BLKROTATIONAL,
  0x5401 /* TCGETS */,
  0xc020660b /* FS_IOC_FIEMAP */,
};

struct filter {
  scmp_filter_ctx ctx;
  int r;
};

/* COUNT arguments of NAME are as the comparisons say. */
static void
rule (struct filter *f, uint32_t action, const char *name, unsigned count,
      const struct scmp_arg_cmp *cmp)
{
  int nr = seccomp_syscall_resolve_name (name);

  if (f->r == 0 && nr != __NR_SCMP_ERROR)
    f->r = seccomp_rule_add_array (f->ctx, action, nr, count, cmp);
  if (f->r == -EDOM || f->r == -EFAULT)
    f->r = 0; /* not of this architecture */
}

static void
allow (struct filter *f, const char *name)
{
  rule (f, SCMP_ACT_ALLOW, name, 0, NULL);
}

static void
allow_if (struct filter *f, const char *name, unsigned arg, uint64_t mask, uint64_t value)
{
  struct scmp_arg_cmp cmp = SCMP_CMP64 (arg, SCMP_CMP_MASKED_EQ, mask, value);

  rule (f, SCMP_ACT_ALLOW, name, 1, &cmp);
}

static void
refuse_if (struct filter *f, int error, const char *name, unsigned arg, uint64_t mask,
           uint64_t value)
{
  struct scmp_arg_cmp cmp = SCMP_CMP64 (arg, SCMP_CMP_MASKED_EQ, mask, value);

  rule (f, SCMP_ACT_ERRNO ((uint16_t)error), name, 1, &cmp);
}

static void
allow_list (struct filter *f, const char *const *names, size_t n)
{
  for (size_t i = 0; i < n; i++)
    allow (f, names[i]);
}
#define ALLOW_LIST(f, list) allow_list (f, list, sizeof (list) / sizeof (list)[0])

/* Not those that have signals sent to other processes. */
static void
control_files (struct filter *f)
{
  static const char *const names[] = { "fcntl", "fcntl64" };
  static const unsigned commands[] = {
    F_DUPFD,      F_DUPFD_CLOEXEC, F_GETFD,     F_SETFD,     F_GETFL,     F_SETFL,
    F_GETLK,      F_SETLK,         F_SETLKW,    F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW,
    F_GETPIPE_SZ, F_SETPIPE_SZ,    F_ADD_SEALS, F_GET_SEALS,
  };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    for (size_t k = 0; k < sizeof commands / sizeof commands[0]; k++)
      allow_if (f, names[i], 1, UINT32_MAX, commands[k]);
  for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
    allow_if (f, "ioctl", 1, UINT32_MAX, devices[i]);
}

/* What is made for a client, and no more: no programs for the kernel to run on packets, and no
 * protocols that it would have to load. */
static void
tune_sockets (struct filter *f)
{
  static const struct {
    int level, name;
  } options[] = {
    { SOL_SOCKET, SO_SNDBUF },     { SOL_SOCKET, SO_RCVBUF },    { SOL_SOCKET, SO_KEEPALIVE },
    { SOL_SOCKET, SO_REUSEADDR },  { SOL_SOCKET, SO_LINGER },    { SOL_SOCKET, SO_RCVTIMEO },
    { SOL_SOCKET, SO_SNDTIMEO },   { IPPROTO_TCP, TCP_NODELAY }, { IPPROTO_TCP, TCP_CORK },
    { IPPROTO_IPV6, IPV6_V6ONLY },
  };

  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    struct scmp_arg_cmp cmp[] = {
      SCMP_CMP64 (1, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint64_t)options[i].level),
      SCMP_CMP64 (2, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint64_t)options[i].name),
    };
    rule (f, SCMP_ACT_ALLOW, "setsockopt", 2, cmp);
  }
  /* A pair of another type can be sent to other places than its other end. */
  struct scmp_arg_cmp pair[] = {
    SCMP_CMP64 (0, SCMP_CMP_MASKED_EQ, UINT32_MAX, AF_UNIX),
    SCMP_CMP64 (1, SCMP_CMP_MASKED_EQ, SOCKET_TYPE, SOCK_STREAM),
  };
  rule (f, SCMP_ACT_ALLOW, "socketpair", 2, pair);
  /* Sending does not connect: a listener that was shut down would do for that. */
  allow_if (f, "send", 3, MSG_FASTOPEN, 0);
  allow_if (f, "sendto", 3, MSG_FASTOPEN, 0);
  allow_if (f, "sendmsg", 2, MSG_FASTOPEN, 0);
  allow_if (f, "sendmmsg", 3, MSG_FASTOPEN, 0);
}

/* Where the list is too coarse. */
static void
look_at_arguments (struct filter *f)
{
  /* Threads, and no processes or namespaces.  clone3 hides its flags: without it, libc uses clone.
   */
  allow_if (f, "clone", 0, CLONE_THREAD | NAMESPACES | CLONE_PTRACE, CLONE_THREAD);
  refuse_if (f, EPERM, "clone", 0, CLONE_THREAD, 0);
  /* No code but what was there. */
  static const char *const mapping[] = { "mmap", "mmap2", "mprotect", "pkey_mprotect" };
  for (size_t i = 0; i < sizeof mapping / sizeof mapping[0]; i++) {
    allow_if (f, mapping[i], 2, PROT_EXEC, 0);
    refuse_if (f, EPERM, mapping[i], 2, PROT_EXEC, PROT_EXEC);
  }
  /* Rings are made before the filter, and can do nothing but read (ring.c). */
  allow_if (f, "io_uring_register", 1, UINT32_MAX, IORING_REGISTER_ENABLE_RINGS);
  allow_if (f, "prctl", 0, UINT32_MAX, PR_SET_NAME);
  allow_if (f, "prctl", 0, UINT32_MAX, PR_GET_NAME);
  allow_if (f, "prctl", 0, UINT32_MAX, 0x53564d41 /* PR_SET_VMA */);
  /* Signals to our own threads. */
  allow_if (f, "tgkill", 0, UINT32_MAX, (uint64_t)getpid ());
  /* Limits are read. */
  struct scmp_arg_cmp limits[] = {
    SCMP_CMP64 (0, SCMP_CMP_MASKED_EQ, UINT32_MAX, 0),
    SCMP_CMP64 (2, SCMP_CMP_EQ, 0, 0),
  };
  rule (f, SCMP_ACT_ALLOW, "prlimit64", 2, limits);
}

/* New files, but no program that runs as its owner. */
static void
make_files (struct filter *f)
{
  static const struct {
    const char *name;
    unsigned mode; /* the argument */
  } calls[] = {
    { "open", 2 },  { "openat", 3 },  { "creat", 1 },
    { "mkdir", 1 }, { "mkdirat", 2 }, { "fchmod", 1 }, /* for new sockets (listen.c) */
  };

  for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
    allow_if (f, calls[i].name, calls[i].mode, S_ISUID | S_ISGID | S_ISVTX, 0);
}

static void
open_files (struct filter *f, unsigned calls)
{
  static const char *const names[] = { "open", "openat" };
  const unsigned writing = O_ACCMODE | O_CREAT | O_TRUNC;

  if (calls & SANDBOX_CALLS_READ)
    ALLOW_LIST (f, when_reading);
  if (calls & SANDBOX_CALLS_WRITE) {
    make_files (f);
    ALLOW_LIST (f, when_writing);
    return;
  }
  for (unsigned i = 0; i < 2; i++) {
    unsigned flags = i + 1;
    if (calls & SANDBOX_CALLS_READ) {
      allow_if (f, names[i], flags, writing, O_RDONLY);
      /* Whatever of these bits is set: one rule for each, for they cannot be compared together. */
      for (unsigned bit = 1; bit <= writing; bit <<= 1)
        if (writing & bit)
          refuse_if (f, EACCES, names[i], flags, bit, bit);
    } else
      rule (f, SCMP_ACT_ERRNO (EACCES), names[i], 0, NULL);
  }
}

static void
make_sockets (struct filter *f, unsigned calls)
{
  static const struct {
    int family, type, protocol;
  } sockets[] = {
    { AF_UNIX, SOCK_STREAM, 0 },
    { AF_UNIX, SOCK_DGRAM, 0 },
    { AF_INET, SOCK_STREAM, 0 },
    { AF_INET, SOCK_STREAM, IPPROTO_TCP },
    { AF_INET6, SOCK_STREAM, 0 },
    { AF_INET6, SOCK_STREAM, IPPROTO_TCP },
    { AF_VSOCK, SOCK_STREAM, 0 },
    /* The names of hosts. */
    { AF_INET, SOCK_DGRAM, 0 },
    { AF_INET, SOCK_DGRAM, IPPROTO_UDP },
    { AF_INET6, SOCK_DGRAM, 0 },
    { AF_INET6, SOCK_DGRAM, IPPROTO_UDP },
  };

  if (calls & SANDBOX_CALLS_SOCKETS) {
    for (size_t i = 0; i < sizeof sockets / sizeof sockets[0]; i++) {
      struct scmp_arg_cmp cmp[] = {
        SCMP_CMP64 (0, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint64_t)sockets[i].family),
        SCMP_CMP64 (1, SCMP_CMP_MASKED_EQ, SOCKET_TYPE, (uint64_t)sockets[i].type),
        SCMP_CMP64 (2, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint64_t)sockets[i].protocol),
      };
      rule (f, SCMP_ACT_ALLOW, "socket", 3, cmp);
    }
    ALLOW_LIST (f, with_sockets);
  } else if (calls & SANDBOX_CALLS_TELL) {
    struct scmp_arg_cmp cmp[] = {
      SCMP_CMP64 (0, SCMP_CMP_MASKED_EQ, UINT32_MAX, AF_UNIX),
      SCMP_CMP64 (1, SCMP_CMP_MASKED_EQ, SOCKET_TYPE, SOCK_DGRAM),
    };
    rule (f, SCMP_ACT_ALLOW, "socket", 2, cmp);
    allow (f, "connect");
  }
}

/* Nobody is asked to do anything: a process is watched, and its end is. */
static void
end_processes (struct filter *f, unsigned calls)
{
  if (!(calls & SANDBOX_CALLS_KILL))
    return;
  allow (f, "pidfd_open");
  allow_if (f, "pidfd_send_signal", 1, UINT32_MAX, SIGKILL);
}

int
sandbox_load_filter (unsigned calls, struct q_error *err)
{
  struct filter f = { .ctx = seccomp_init (SCMP_ACT_ERRNO (ENOSYS)) };
  bool absent = false;

  if (!f.ctx)
    f.r = -ENOMEM;
  else {
    /* All threads of the process, or it would be none; and what is refused is logged. */
    f.r = seccomp_attr_set (f.ctx, SCMP_FLTATR_CTL_TSYNC, 1);
    absent = f.r == -EOPNOTSUPP;
    seccomp_attr_set (f.ctx, SCMP_FLTATR_CTL_LOG, 1);
    seccomp_attr_set (f.ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    seccomp_attr_set (f.ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* What the kernel says, and not ECANCELED for all of it. */
    if (f.r == 0)
      f.r = seccomp_attr_set (f.ctx, SCMP_FLTATR_API_SYSRAWRC, 1);
    ALLOW_LIST (&f, always);
    look_at_arguments (&f);
    control_files (&f);
    tune_sockets (&f);
    open_files (&f, calls);
    make_sockets (&f, calls);
    end_processes (&f, calls);
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++)
      rule (&f, SCMP_ACT_KILL_PROCESS, deadly[i], 0, NULL);
  }
  if (f.r == 0) {
    f.r = seccomp_load (f.ctx);
    absent = f.r == -ENOSYS || f.r == -EINVAL || f.r == -EOPNOTSUPP || f.r == -EPERM;
  }
  if (f.ctx)
    seccomp_release (f.ctx);
  if (f.r < 0)
    snprintf (err->text, sizeof err->text, "the filter of system calls: %s", strerror (-f.r));
  /* What kernels without it say, and containers that do not let it be used; rules that could not be
   * made are an error of ours. */
  return absent ? -ENOTSUP : f.r;
}

#else

int
sandbox_load_filter (unsigned calls, struct q_error *err)
{
  (void)calls;
  snprintf (err->text, sizeof err->text,
            "system calls cannot be filtered: this nbdcow was built without libseccomp");
  return -ENOTSUP;
}

#endif
