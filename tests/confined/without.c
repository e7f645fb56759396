/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A kernel, or a container, that lacks something:
 *
 *     without WHAT COMMAND [ARGUMENT]...
 *
 * WHAT:  landlock            a kernel that was built without it
 *        landlock-off        ... one that has it, not enabled
 *        seccomp             a kernel without filters of system calls
 *        seccomp-container   a container that does not let them be made
 *        both                neither Landlock nor filters
 *
 * COMMAND is run with a filter under which the calls that make them fail as they do there.
 */

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define N_WHAT 5

static const struct {
  const char *name;
  int landlock, seccomp, prctl; /* what fails with what; 0: works */
} what[N_WHAT] = {
  { "landlock", ENOSYS, 0, 0 },       { "landlock-off", EOPNOTSUPP, 0, 0 },
  { "seccomp", 0, ENOSYS, EINVAL },   { "seccomp-container", 0, EPERM, EPERM },
  { "both", ENOSYS, ENOSYS, EINVAL },
};

static unsigned
answer (int error)
{
  return error ? SECCOMP_RET_ERRNO | (unsigned)error : SECCOMP_RET_ALLOW;
}

static int
take_away (unsigned i)
{
  struct sock_filter code[] = {
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, nr)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, SYS_landlock_create_ruleset, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, answer (what[i].landlock)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, answer (what[i].seccomp)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, args[0])),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, PR_SET_SECCOMP, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, answer (what[i].prctl)),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { sizeof code / sizeof code[0], code };

  if (prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return -1;
  return prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

int
main (int argc, char **argv)
{
  unsigned i = 0;

  while (argc > 2 && i < N_WHAT && strcmp (argv[1], what[i].name) != 0)
    i++;
  if (argc < 3 || i == N_WHAT) {
    fprintf (stderr, "usage: without WHAT COMMAND [ARGUMENT]...\n");
    return 2;
  }
  if (take_away (i) < 0) {
    perror ("without");
    return 77;
  }
  execvp (argv[2], argv + 2);
  perror (argv[2]);
  return 2;
}
