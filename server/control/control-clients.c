/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about who is connected.  QMP has nothing of the kind.
 */

#include <errno.h>

#include "clients.h"
#include "control.h"
#include "describe.h"

static json_t *
describe_client (const struct client_info *c)
{
  json_t *j = json_pack ("{s:I, s:o, s:f, s:b, s:I, s:I, s:I}", "id", (json_int_t)c->id, "peer",
                         describe_text (c->peer ? c->peer : ""), "since", c->since, "tls", c->tls,
                         "requests", (json_int_t)c->requests, "bytes-read",
                         (json_int_t)c->bytes_read, "bytes-written", (json_int_t)c->bytes_written);
  if (c->export)
    json_object_set_new (j, "export", describe_text (c->export));
  return j;
}

static int
query_clients (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct client_info *list;
  struct members m;

  control_arguments (&m, call, args, err);
  int r = members_end (&m);
  if (r < 0)
    return r;
  int n = clients_list (call->context->clients, &list);
  if (n < 0)
    return n;
  *ret = json_array ();
  for (int i = 0; i < n; i++)
    if (json_array_append_new (*ret, describe_client (&list[i])) < 0)
      r = -ENOMEM;
  clients_free_list (list, n);
  return *ret ? r : -ENOMEM;
}

static int
disconnect_client (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  uint64_t id = 0;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_require (&m, "id");
  members_number (&m, "id", 0, INT64_MAX, &id);
  int r = members_end (&m);
  if (r == 0 && clients_disconnect (call->context->clients, id) < 0)
    r = control_no_device (err, "no client with the id %llu is connected", (unsigned long long)id);
  return r;
}

const struct control_command control_client_commands[] = {
  { "query-clients", query_clients, CONTROL_AT_ONCE },
  { "client-disconnect", disconnect_client, CONTROL_AT_ONCE },
  { NULL, NULL, CONTROL_AT_ONCE },
};
