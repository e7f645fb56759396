/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Somebody who has taken a server over: enters its sandbox and tries things.
 *
 *     sandbox [--want=WANT[:PATH]]... ACTION
 *
 * WANTs are those of sandbox.h.  Prints what came of ACTION: "done", or the name of an error; a
 * process that is ended for it says nothing.  A thread that was there before the filter does it,
 * and one that was made after it has to be possible.  Exit status 2: there is no such action, or no
 * sandbox; 77 (with what is missing) if the kernel or the build has not all of it.
 */

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
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
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

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
  { "execve", run_program },
  { "spawn", spawn_program },
  { "fork", make_process },
  { "ptrace", trace },
  { "process-vm", read_other },
  { "kill", signal_other },
  { "mount", mount_something },
  { "setuid", become_root },
  { "unshare", make_namespace },
  { "socket-inet", inet_socket },
  { "socket-unix", unix_stream },
  { "socket-unix-datagram", unix_datagram },
  { "socket-packet", raw_socket },
  { "mmap-exec", executable_memory },
  { "mprotect-exec", make_executable },
  { "io_uring", make_ring },
  { "tiocsti", type_on_terminal },
  { "bpf", load_code },
  { "fchmod", change_mode },
  { "fchmod-setuid", change_mode_setuid },
  { "send", send_inside },
  { "send-fast-open", send_outside },
  { "sendmsg-fast-open", send_message_outside },
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
  static const char *const names[] = { "remove", "remove-dir", "state", "read", "tell", "images" };
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

  sandbox_init (&sb, SANDBOX_ON);
  for (; i < argc && strncmp (argv[i], "--want=", 7) == 0; i++)
    want (&sb, argv[i] + 7);
  for (size_t k = 0; i < argc && k < sizeof actions / sizeof actions[0]; k++)
    if (strcmp (argv[i], actions[k].name) == 0)
      action = actions[k].run;
  if (!action) {
    fprintf (stderr, "sandbox: no action\n");
    return 2;
  }
  if (i + 1 < argc)
    argument = argv[i + 1];
  file = open (".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  tcp = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sem_init (&confined, 0, 0);
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
