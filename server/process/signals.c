/* SPDX-License-Identifier: BSD-3-Clause */

#include <signal.h>
#include <stddef.h>
#include <string.h>

#include "signals.h"

/* What SIGHUP means is for whoever looks to say (signals_noted); the others end the server. */
static const int ending[] = { SIGTERM, SIGINT, SIGHUP };
#define N_ENDING (sizeof ending / sizeof ending[0])

static volatile sig_atomic_t noted;
static volatile sig_atomic_t heir;

static void
on_signal (int signum)
{
  if (signum != SIGHUP || noted == 0)
    noted = signum;
}

static void
pass_on (int signum)
{
  kill ((pid_t)heir, signum);
}

static void
handle (void (*handler) (int), int flags)
{
  struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

  for (size_t i = 0; i < N_ENDING; i++)
    sigaction (ending[i], &action, NULL);
}

void
signals_note (void)
{
  struct sigaction action = { .sa_handler = on_signal };

  handle (on_signal, (int)SA_RESETHAND);
  sigaction (SIGHUP, &action, NULL);
}

int
signals_noted (void)
{
  return noted;
}

void
signals_block (bool block)
{
  sigset_t set;

  sigemptyset (&set);
  for (size_t i = 0; i < N_ENDING; i++)
    sigaddset (&set, ending[i]);
  sigprocmask (block ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

void
signals_pass_to (pid_t child)
{
  heir = child;
  handle (pass_on, SA_RESTART);
}
