// SPDX-License-Identifier: BSD-3-Clause
//
// A dialogue with the control socket in DigitalOcean's go-qemu, a client of QMP that knows nothing of nbdcow: its
// types are made from QEMU's schema, and what is not of that type is an error.
//
//     qmp-client CONTROL FILE     FILE is the image of the export "a"; the server is quit in the end

package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
)

func must(what string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

func check(ok bool, what string, args ...interface{}) {
	if !ok {
		log.Fatalf(what, args...)
	}
}

func run(m qmp.Monitor, command string, arguments interface{}) []byte {
	text, err := json.Marshal(map[string]interface{}{"execute": command, "arguments": arguments})
	must(command, err)
	answer, err := m.Run(text)
	must(command, err)
	return answer
}

func main() {
	m, err := qmp.NewSocketMonitor("unix", os.Args[1], 60*time.Second)
	must("NewSocketMonitor", err)
	must("Connect", m.Connect())
	defer m.Disconnect()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	stream, err := m.Events(ctx)
	must("Events", err)
	// An event may come before the reply to the command that caused it, and the monitor reads no further until it is taken.
	events := make(chan qmp.Event, 100)
	go func() {
		for e := range stream {
			events <- e
		}
	}()
	r := raw.NewMonitor(m)

	version, err := r.QueryVersion()
	must("query-version", err)
	check(len(version.Package) > 0, "no package in %v", version)
	status, err := r.QueryStatus()
	must("query-status", err)
	check(status.Running && status.Status == raw.RunStateRunning, "status: %v", status)
	commands, err := r.QueryCommands()
	must("query-commands", err)
	check(len(commands) > 10, "commands: %v", commands)

	nodes, err := r.QueryNamedBlockNodes()
	must("query-named-block-nodes", err)
	check(len(nodes) == 1 && *nodes[0].NodeName == "a" && nodes[0].File == os.Args[2] && nodes[0].Drv == "qcow2" &&
		nodes[0].Image.VirtualSize == 8<<20, "nodes: %+v", nodes)
	all := true
	stats, err := r.QueryBlockstats(&all)
	must("query-blockstats", err)
	check(len(stats) == 1 && stats[0].Stats.WrHighestOffset > 0, "stats: %+v", stats)

	a := "a"
	must("block_resize", r.BlockResize(&a, nil, 16<<20))
	check(r.BlockResize(&a, nil, 1<<20) != nil, "a disk was made smaller")
	persistent := true
	must("block-dirty-bitmap-add", r.BlockDirtyBitmapAdd("a", "one", nil, &persistent, nil))
	check(r.BlockDirtyBitmapAdd("a", "one", nil, &persistent, nil) != nil, "a bitmap was added twice")
	must("block-dirty-bitmap-clear", r.BlockDirtyBitmapClear("a", "one"))
	must("transaction", r.Transaction([]raw.TransactionAction{
		raw.TransactionActionBlockDirtyBitmapClear{Node: "a", Name: "one"},
		raw.TransactionActionBlockDirtyBitmapAdd{Node: "a", Name: "two", Persistent: &persistent},
		raw.TransactionActionBlockdevSnapshotInternalSync{Device: "a", Name: "s"},
	}, nil))
	nodes, err = r.QueryNamedBlockNodes()
	must("query-named-block-nodes", err)
	check(nodes[0].Image.VirtualSize == 16<<20 && len(nodes[0].Image.Snapshots) == 1 && nodes[0].Image.Snapshots[0].Name == "s",
		"after the transaction: %+v", nodes[0])

	// What is newer than the client's schema.
	run(m, "block-export-add", map[string]interface{}{"type": "nbd", "id": "b", "node-name": "a", "load-snapshot": "s", "bitmaps": []string{"one"}})
	run(m, "block-export-del", map[string]string{"id": "b"})
	select {
	case e := <-events:
		check(e.Event == "BLOCK_EXPORT_DELETED" && e.Data["id"] == "b" && e.Timestamp.Seconds > 0, "event: %+v", e)
	case <-ctx.Done():
		log.Fatal("no event")
	}
	s := "s"
	gone, err := r.BlockdevSnapshotDeleteInternalSync("a", nil, &s)
	must("blockdev-snapshot-delete-internal-sync", err)
	check(gone.Name == "s" && gone.ID == "1", "what was deleted: %+v", gone)
	must("block-dirty-bitmap-remove", r.BlockDirtyBitmapRemove("a", "one"))
	must("block-set-write-threshold", r.BlockSetWriteThreshold("a", 1))
	select {
	case e := <-events:
		check(e.Event == "BLOCK_WRITE_THRESHOLD" && e.Data["node-name"] == "a", "event: %+v", e)
	case <-ctx.Done():
		log.Fatal("no event")
	}
	_, err = m.Run([]byte(`{"execute": "no-such-command"}`))
	check(err != nil, "a command that there is not was carried out")
	must("quit", r.Quit())
}
