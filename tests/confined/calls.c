/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "calls.h"

#define CALL(name)                                                                                 \
  {                                                                                                \
#name, SYS_##name                                                                              \
  }

/* As if the kernel did not have them. */
const struct call absent[] = {
  CALL (io_uring_setup),
  CALL (clone3),
  CALL (vmsplice),
  CALL (tee),
  CALL (memfd_create),
  CALL (remap_file_pages),
  CALL (shmget),
  CALL (shmat),
  CALL (semget),
  CALL (msgget),
  CALL (mq_open),
  CALL (kill),
  CALL (tkill),
  CALL (rt_sigqueueinfo),
  CALL (rt_tgsigqueueinfo),
  CALL (pidfd_open),
  CALL (pidfd_send_signal),
  CALL (process_mrelease),
  CALL (timer_create),
  CALL (setpriority),
  CALL (sched_setscheduler),
  CALL (sched_setparam),
  CALL (sched_setattr),
  CALL (sched_setaffinity),
  CALL (ioprio_set),
  CALL (setpgid),
  CALL (setsid),
  CALL (mbind),
  CALL (set_mempolicy),
  CALL (migrate_pages),
  CALL (move_pages),
  CALL (seccomp),
  CALL (landlock_create_ruleset),
  CALL (openat2),
  CALL (symlinkat),
  CALL (mknodat),
  CALL (setxattr),
  CALL (fsetxattr),
  CALL (removexattr),
  CALL (sync),
  CALL (mlockall),
  CALL (io_setup),
  CALL (inotify_init1),
  CALL (pkey_alloc),
  { NULL, 0 },
};

/* The end of the process. */
const struct call deadly[] = {
  CALL (execve),
  CALL (execveat),
  CALL (ptrace),
  CALL (process_vm_readv),
  CALL (process_vm_writev),
  CALL (kcmp),
  CALL (pidfd_getfd),
  CALL (process_madvise),
  CALL (mount),
  CALL (umount2),
  CALL (move_mount),
  CALL (open_tree),
  CALL (fsopen),
  CALL (fsconfig),
  CALL (fsmount),
  CALL (fspick),
  CALL (mount_setattr),
  CALL (pivot_root),
  CALL (chroot),
  CALL (setns),
  CALL (unshare),
  CALL (init_module),
  CALL (finit_module),
  CALL (delete_module),
  CALL (kexec_load),
  CALL (bpf),
  CALL (perf_event_open),
  CALL (userfaultfd),
  CALL (add_key),
  CALL (request_key),
  CALL (keyctl),
  CALL (reboot),
  CALL (swapon),
  CALL (swapoff),
  CALL (acct),
  CALL (quotactl),
  CALL (open_by_handle_at),
  CALL (name_to_handle_at),
  CALL (fanotify_init),
  CALL (fanotify_mark),
  CALL (settimeofday),
  CALL (clock_settime),
  CALL (clock_adjtime),
  CALL (adjtimex),
  CALL (sethostname),
  CALL (setdomainname),
  CALL (syslog),
  CALL (vhangup),
  CALL (personality),
  CALL (setuid),
  CALL (setgid),
  CALL (setresuid),
  CALL (setresgid),
  CALL (setgroups),
  CALL (setfsuid),
  CALL (capset),
  { NULL, 0 },
};

int
list_calls (const struct call *list)
{
  for (; list->name; list++)
    printf ("%s\n", list->name);
  return 0;
}

bool
find_call (const char *name, const struct call *list, long *number)
{
  while (list->name && strcmp (list->name, name) != 0)
    list++;
  *number = list->number;
  return list->name != NULL;
}
