/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Somebody who has taken a server over: enters its sandbox and tries things.
 *
 *     sandbox [--want=WANT[:PATH]]... ACTION [ARGUMENT]
 *     sandbox --absent | --deadly     names of actions that are nothing but a system call
 *
 * WANTs are those of sandbox.h.  Prints what came of ACTION: "done", or the name of an error; a
 * process that is ended for it says nothing.  A thread that was there before the filter does it,
 * and one that was made after it has to be possible.  Exit status 2: there is no such action, or no
 * sandbox; 77 (with what is missing) if the kernel or the build has not all of it.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ev.h>

#include "calls.h"
#include "ring.c" /* what it keeps to itself is what an intruder has */
#include "sandbox.h"

extern char **environ;

static const char *argument = "";
static int tcp = -1, file = -1; /* of before */

static int
read_shadow (void)
{
  return open ("/etc/shadow", O_RDONLY);
}

static int
read_file (void)
{
  int fd = open (argument, O_RDONLY);
  char byte;

  return fd < 0 ? -1 : (int)read (fd, &byte, 1);
}

static int
write_file (void)
{
  return open (argument, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

static int
change_mode (void)
{
  return fchmod (file, 0600);
}

static int
change_mode_setuid (void)
{
  return fchmod (file, 04755);
}

static int
remove_file (void)
{
  return unlink (argument);
}

static int
run_program (void)
{
  char *argv[] = { (char *)"true", NULL };
  return execve ("/bin/true", argv, environ);
}

static int
spawn_program (void)
{
  char *argv[] = { (char *)"true", NULL };
  pid_t pid;

  errno = posix_spawn (&pid, "/bin/true", NULL, NULL, argv, environ);
  return errno ? -1 : 0;
}

static int
make_process (void)
{
  pid_t pid = fork ();

  if (pid == 0)
    _exit (0);
  return pid;
}

static int
trace (void)
{
  return (int)ptrace (PTRACE_ATTACH, getppid (), NULL, NULL);
}

static int
read_other (void)
{
  char buf[8];
  struct iovec here = { buf, sizeof buf }, there = { (void *)0x400000, sizeof buf };

  return (int)syscall (SYS_process_vm_readv, getppid (), &here, 1, &there, 1, 0);
}

static int
signal_other (void)
{
  return kill (getppid (), 0);
}

/* A process that was there before, and goes when we do: of that it hears by a pipe, for Landlock
 * keeps back the signals of parents that die, too. */
static pid_t victim;

static void
make_victim (void)
{
  int end[2];
  char byte;

  if (pipe2 (end, O_CLOEXEC) < 0 || (victim = fork ()) != 0)
    return;
  close (end[1]);
  _exit (read (end[0], &byte, 1) != 0);
}

static int
signal_victim (int sig)
{
  int fd = (int)syscall (SYS_pidfd_open, victim, 0);
  return fd < 0 ? -1 : (int)syscall (SYS_pidfd_send_signal, fd, sig, NULL, 0);
}

static int
end_other (void)
{
  return signal_victim (SIGKILL);
}

static int
stop_other (void)
{
  return signal_victim (SIGSTOP);
}

static int
mount_something (void)
{
  return mount ("none", "/mnt", "tmpfs", 0, NULL);
}

static int
become_root (void)
{
  return setuid (0);
}

static int
make_namespace (void)
{
  return unshare (CLONE_NEWUSER);
}

static int
inet_socket (void)
{
  return socket (AF_INET, SOCK_STREAM, 0);
}

static int
unix_stream (void)
{
  return socket (AF_UNIX, SOCK_STREAM, 0);
}

static int
unix_datagram (void)
{
  return socket (AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static int
raw_socket (void)
{
  return socket (AF_PACKET, SOCK_RAW, 0);
}

static int
executable_memory (void)
{
  return mmap (NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
               0) == MAP_FAILED
             ? -1
             : 0;
}

static int
make_executable (void)
{
  void *p = mmap (NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  return p == MAP_FAILED ? -1 : mprotect (p, 4096, PROT_READ | PROT_EXEC);
}

static int
make_ring (void)
{
  uint8_t p[120] = { 0 }; /* struct io_uring_params */
  return (int)syscall (SYS_io_uring_setup, 4, p);
}

static int
type_on_terminal (void)
{
  char c = 'x';
  return (int)syscall (SYS_ioctl, 0, 0x5412 /* TIOCSTI */, &c);
}

/* Connects without connect(); the reply, if it is a refusal, has come from the other side. */
static int
send_outside (void)
{
  struct sockaddr_in there = { .sin_family = AF_INET,
                               .sin_port = htons (9),
                               .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };

  return (int)sendto (tcp, "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&there,
                      sizeof there);
}

static int
send_message_outside (void)
{
  struct iovec data = { (char[]){ 'x' }, 1 };
  struct sockaddr_in there = { .sin_family = AF_INET,
                               .sin_port = htons (9),
                               .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };
  struct msghdr m = {
    .msg_name = &there, .msg_namelen = sizeof there, .msg_iov = &data, .msg_iovlen = 1
  };

  return (int)sendmsg (tcp, &m, MSG_FASTOPEN | MSG_NOSIGNAL);
}

static int
send_inside (void)
{
  int pair[2];

  return socketpair (AF_UNIX, SOCK_STREAM, 0, pair) < 0
             ? -1
             : (int)send (pair[0], "x", 1, MSG_NOSIGNAL | MSG_MORE | MSG_DONTWAIT);
}

static int
load_code (void)
{
  return (int)syscall (SYS_bpf, 0, NULL, 0);
}

/* ---- what is let through, with other arguments ----------------------------------------------- */

static int
open_setuid (void)
{
  return open (argument, O_WRONLY | O_CREAT, 04755);
}

static int
create_setgid (void)
{
  return (int)syscall (SYS_openat, AT_FDCWD, argument, O_RDWR | O_TMPFILE, 02755);
}

static int
mknod_setuid (void)
{
  return mknod (argument, S_IFREG | 04755, 0);
}

static int
chmod_setuid (void)
{
  return chmod (argument, 04755);
}

static int
make_directory_setgid (void)
{
  return mkdir (argument, 02755);
}

static int
open_by_structure (void)
{
  uint64_t how[3] = { O_RDONLY, 0, 0 }; /* struct open_how */

  return (int)syscall (SYS_openat2, AT_FDCWD, argument, how, sizeof how);
}

static int
signal_thread_of_other (void)
{
  return (int)syscall (SYS_tgkill, getppid (), getppid (), 0);
}

static int
signal_own_thread (void)
{
  return (int)syscall (SYS_tgkill, getpid (), gettid (), 0);
}

static int
signal_by_file (void)
{
  return fcntl (tcp, F_SETOWN, getppid ());
}

static int
file_flags (void)
{
  return fcntl (tcp, F_GETFL);
}

static int
set_limit (void)
{
  struct rlimit l = { 100, 100 };

  return setrlimit (RLIMIT_NOFILE, &l);
}

static int
limit_of_other (void)
{
  struct rlimit l;

  return (int)syscall (SYS_prlimit64, getppid (), RLIMIT_NOFILE, NULL, &l);
}

static int
get_limit (void)
{
  struct rlimit l;

  return getrlimit (RLIMIT_NOFILE, &l);
}

/* Which no kernel does, for a thread shares its memory. */
static int
namespace_for_thread (void)
{
  return (int)syscall (SYS_clone, CLONE_THREAD | CLONE_NEWNET, NULL, NULL, NULL, 0L);
}

static int
pair_of_datagrams (void)
{
  int pair[2];

  return socketpair (AF_UNIX, SOCK_DGRAM, 0, pair);
}

static int
filter_packets (void)
{
  struct sock_filter pass = BPF_STMT (BPF_RET | BPF_K, ~0u);
  struct sock_fprog program = { 1, &pass };

  return setsockopt (tcp, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static int
load_protocol (void)
{
  return setsockopt (tcp, IPPROTO_TCP, TCP_ULP, "tls", 3);
}

static int
tune_socket (void)
{
  int on = 1;

  return setsockopt (tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int
other_protocol (void)
{
  return socket (AF_INET, SOCK_STREAM, 132 /* SCTP */);
}

static int
raw_internet_socket (void)
{
  return socket (AF_INET, SOCK_RAW, IPPROTO_TCP);
}

static int
make_dumpable (void)
{
  return prctl (PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static int
keep_capabilities (void)
{
  return prctl (PR_SET_KEEPCAPS, 1, 0, 0, 0);
}

static int
open_memory_of_self (void)
{
  return open ("/proc/self/mem", O_RDWR);
}

/* The other ABI that x86-64 kernels may have. */
static int
other_abi (void)
{
#ifdef __x86_64__
  return (int)syscall (0x40000000 | SYS_getpid);
#else
  raise (SIGSYS);
  return 0;
#endif
}

/* ---- the ring, which no filter looks into ---------------------------------------------------- */

static struct ring *ring;
static struct ev_loop *loop;

static void
ring_completed (void *unused)
{
  (void)unused;
}

#ifdef HAVE_LIBURING
/* What comes of one more entry, of kind OPCODE. */
static int
by_ring (uint8_t opcode, int fd, uint64_t address, uint32_t len, uint32_t flags)
{
  struct io_uring_cqe *cqe;
  struct io_uring_sqe *sqe = ring_usable (ring, 1) ? io_uring_get_sqe (&ring->ring) : NULL;
  int r;

  if (!sqe) {
    errno = EOPNOTSUPP;
    return -1;
  }
  *sqe = (struct io_uring_sqe){
    .opcode = opcode, .fd = fd, .addr = address, .len = len, .open_flags = flags
  };
  r = io_uring_submit_and_wait (&ring->ring, 1);
  if (r >= 0 && io_uring_peek_cqe (&ring->ring, &cqe) == 0) {
    r = cqe->res;
    io_uring_cqe_seen (&ring->ring, cqe);
  }
  errno = r < 0 ? -r : 0;
  return r < 0 ? -1 : 0;
}

static int
ring_learns (void)
{
  if (!ring_usable (ring, 1)) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return (int)syscall (SYS_io_uring_register, ring->ring.ring_fd, IORING_REGISTER_PERSONALITY, NULL,
                       0);
}
#else
static int
by_ring (uint8_t opcode, int fd, uint64_t address, uint32_t len, uint32_t flags)
{
  (void)opcode;
  (void)fd;
  (void)address;
  (void)len;
  (void)flags;
  errno = EOPNOTSUPP;
  return -1;
}

static int
ring_learns (void)
{
  return by_ring (0, -1, 0, 0, 0);
}
#endif

static int
ring_reads (void)
{
  char byte[8];

  return by_ring (IORING_OP_READ, file, (uintptr_t)byte, sizeof byte, 0);
}

static int
ring_opens (void)
{
  return by_ring (IORING_OP_OPENAT, AT_FDCWD, (uintptr_t) "/etc/passwd", 0, O_RDONLY);
}

static int
ring_writes (void)
{
  return by_ring (IORING_OP_WRITE, file, (uintptr_t) "x", 1, 0);
}

static int
ring_connects (void)
{
  struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons (9) };

  return by_ring (IORING_OP_CONNECT, tcp, (uintptr_t)&there, sizeof there, 0);
}

static int
ring_makes_socket (void)
{
  return by_ring (45 /* IORING_OP_SOCKET */, AF_INET, 0, 0, 0);
}

static long call_number;

static int
call (void)
{
  return (int)syscall (call_number, 0L, 0L, 0L, 0L, 0L, 0L);
}

static int
nothing (void)
{
  return 0;
}

static const struct {
  const char *name;
  int (*run) (void);
} actions[] = {
  { "nothing", nothing },
  { "read-shadow", read_shadow },
  { "read-file", read_file },
  { "write-file", write_file },
  { "remove-file", remove_file },
  { "run", run_program },
  { "spawn", spawn_program },
  { "fork", make_process },
  { "attach", trace },
  { "read-other", read_other },
  { "signal", signal_other },
  { "end-other", end_other },
  { "stop-other", stop_other },
  { "mount-tmpfs", mount_something },
  { "become-root", become_root },
  { "user-namespace", make_namespace },
  { "socket-inet", inet_socket },
  { "socket-unix", unix_stream },
  { "socket-unix-datagram", unix_datagram },
  { "socket-packet", raw_socket },
  { "mmap-exec", executable_memory },
  { "mprotect-exec", make_executable },
  { "io_uring", make_ring },
  { "tiocsti", type_on_terminal },
  { "load-code", load_code },
  { "fchmod", change_mode },
  { "fchmod-setuid", change_mode_setuid },
  { "send", send_inside },
  { "send-fast-open", send_outside },
  { "sendmsg-fast-open", send_message_outside },
  { "open-setuid", open_setuid },
  { "open-setgid", create_setgid },
  { "mknod-setuid", mknod_setuid },
  { "chmod-setuid", chmod_setuid },
  { "mkdir-setgid", make_directory_setgid },
  { "openat2", open_by_structure },
  { "tgkill", signal_thread_of_other },
  { "tgkill-self", signal_own_thread },
  { "fcntl-setown", signal_by_file },
  { "fcntl-getfl", file_flags },
  { "setrlimit", set_limit },
  { "prlimit-other", limit_of_other },
  { "getrlimit", get_limit },
  { "clone-newnet", namespace_for_thread },
  { "socketpair-datagram", pair_of_datagrams },
  { "setsockopt-filter", filter_packets },
  { "setsockopt-ulp", load_protocol },
  { "setsockopt-nodelay", tune_socket },
  { "socket-sctp", other_protocol },
  { "socket-raw", raw_internet_socket },
  { "prctl-dumpable", make_dumpable },
  { "prctl-keepcaps", keep_capabilities },
  { "proc-self-mem", open_memory_of_self },
  { "other-abi", other_abi },
  { "ring-read", ring_reads },
  { "ring-open", ring_opens },
  { "ring-write", ring_writes },
  { "ring-connect", ring_connects },
  { "ring-socket", ring_makes_socket },
  { "ring-register", ring_learns },
};

static int (*action) (void);
static sem_t confined;

static void *
idle (void *unused)
{
  return unused;
}

static void *
act (void *unused)
{
  pthread_t later;

  while (sem_wait (&confined) < 0 && errno == EINTR)
    ;
  if (pthread_create (&later, NULL, idle, NULL) != 0)
    return unused;
  pthread_join (later, NULL);
  const char *came = action () < 0 ? strerrorname_np (errno) : "done";
  dprintf (STDOUT_FILENO, "%s\n", came);
  return unused;
}

static void
want (struct sandbox *sb, char *text)
{
  static const char *const names[] = { "remove", "remove-dir", "state",   "read",
                                       "tell",   "images",     "handover" };
  char *path = strchr (text, ':');

  if (path)
    *path++ = '\0';
  for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp (text, names[i]) == 0)
      sandbox_want (sb, (enum sandbox_want)i, path);
}

int
main (int argc, char **argv)
{
  struct sandbox sb;
  struct q_error err = { "" };
  pthread_t thread;
  int i = 1;

  if (argc == 2 && strcmp (argv[1], "--absent") == 0)
    return list_calls (absent);
  if (argc == 2 && strcmp (argv[1], "--deadly") == 0)
    return list_calls (deadly);
  sandbox_init (&sb, SANDBOX_ON);
  for (; i < argc && strncmp (argv[i], "--want=", 7) == 0; i++)
    want (&sb, argv[i] + 7);
  for (size_t k = 0; i < argc && k < sizeof actions / sizeof actions[0]; k++)
    if (strcmp (argv[i], actions[k].name) == 0)
      action = actions[k].run;
  if (i < argc && !action &&
      (find_call (argv[i], absent, &call_number) || find_call (argv[i], deadly, &call_number)))
    action = call;
  if (!action) {
    fprintf (stderr, "sandbox: no action\n");
    return 2;
  }
  if (i + 1 < argc)
    argument = argv[i + 1];
  file = open (".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  tcp = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  make_victim ();
  sem_init (&confined, 0, 0);
  loop = ev_loop_new (EVFLAG_AUTO);
  ring_start (&ring, loop, ring_completed, NULL);
  int r = sandbox_enter (&sb, &err);
  if (r == 0 && pthread_create (&thread, NULL, act, NULL) != 0)
    r = -EAGAIN;
  if (r == 0)
    r = sandbox_filter (&sb, &err);
  sandbox_free (&sb);
  if (r < 0) {
    printf ("%s\n", err.text);
    return r == -ENOTSUP ? 77 : 2;
  }
  sem_post (&confined);
  pthread_join (thread, NULL);
  return 0;
}
