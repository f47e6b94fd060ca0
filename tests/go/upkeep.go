package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/snapshot"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
	"go.uber.org/zap"
)

// What operators ask: status, hashes, backups, alarms, members.
var upkeepCases = []testCase{
	{"maintenance_status_hash_alarms_defragment", three, upkeepAnswers},
	{"maintenance_backup_is_read_by_etcds_own_tool", alone, upkeepBackup},
	{"maintenance_backup_that_is_given_up", alone, upkeepGivenUp},
	{"maintenance_leadership_moves", three, upkeepMoveLeader},
	{"cluster_members_are_listed_and_synced", three, upkeepMembers},
	{"cluster_learner_added_updated_and_removed", three, upkeepLearner},
}

func upkeepAnswers(t *T) {
	c := t.client()
	revision := t.put(c, t.key("k"), "1")
	leaders, hashes := map[uint64]bool{}, map[uint32]bool{}
	for _, endpoint := range t.cluster.endpoints() {
		var status *clientv3.StatusResponse
		t.until("each member has it", func() bool {
			var err error
			status, err = c.Status(t.ctx, endpoint)
			t.must(err)
			return status.Header.Revision >= revision
		})
		t.check(status.Version != "" && status.DbSize > 0 && status.RaftTerm > 0 && status.RaftIndex > 0 && !status.IsLearner && len(status.Errors) == 0,
			"%+v", status)
		leaders[status.Leader] = true
		hash, err := c.HashKV(t.ctx, endpoint, revision)
		t.must(err)
		hashes[hash.Hash] = true
		_, err = c.Defragment(t.ctx, endpoint)
		t.must(err)
	}
	t.check(len(leaders) == 1 && !leaders[0], "leaders: %v", leaders)
	t.equal("different hashes", len(hashes), 1)
	_, err := c.HashKV(t.ctx, t.cluster.endpoints()[0], revision+10000)
	t.check(err != nil, "the hash of a revision to come")
	alarms, err := c.AlarmList(t.ctx)
	t.must(err)
	t.equal("alarms", len(alarms.Alarms), 0)
	disarmed, err := c.AlarmDisarm(t.ctx, &clientv3.AlarmMember{})
	t.must(err)
	t.equal("disarmed", len(disarmed.Alarms), 0)
}

func upkeepBackup(t *T) {
	c := t.client()
	for _, key := range []string{"a", "b", "c"} {
		t.put(c, t.key(key), "1")
	}
	before := t.get(c, "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	directory, err := os.MkdirTemp("", "everwatch-go-backup-")
	t.must(err)
	t.later(func() { os.RemoveAll(directory) })
	path := filepath.Join(directory, "backup")
	manager := snapshot.NewV3(zap.NewNop())
	t.must(manager.Save(t.ctx, t.config(), path))
	status, err := manager.Status(path)
	t.must(err)
	t.equal("revision", status.Revision, before.Header.Revision)
	t.check(int64(status.TotalKey) >= before.Count && status.TotalSize > 0, "%+v of %d keys", status, before.Count)
}

func upkeepGivenUp(t *T) {
	c := t.client()
	ctx, cancel := context.WithCancel(t.ctx)
	reader, err := c.Snapshot(ctx)
	t.must(err)
	cancel()
	_, err = io.Copy(io.Discard, reader)
	// What had arrived already may have been all.
	t.check(err == nil || err == context.Canceled, "given up: %v", err)
	reader, err = c.Snapshot(t.ctx)
	t.must(err)
	size, err := io.Copy(io.Discard, reader)
	t.must(err)
	t.must(reader.Close())
	t.check(size%512 == 32, "%d bytes are no whole pages and a checksum", size)
}

func upkeepMoveLeader(t *T) {
	leader := t.cluster.leader(t)
	var next *member
	for _, m := range t.cluster.members {
		if m != leader {
			next = m
		}
	}
	_, err := t.client(at(next.endpoint())).MoveLeader(t.ctx, leader.id(t))
	t.wantErr("asked of a follower", err, rpctypes.ErrNotLeader)
	c := t.client(at(leader.endpoint()))
	_, err = c.MoveLeader(t.ctx, 12345)
	t.wantErr("to nobody", err, rpctypes.ErrBadLeaderTransferee)
	channel := t.watch(c, t.key("k"))
	_, err = c.MoveLeader(t.ctx, next.id(t))
	t.must(err)
	t.until("all follow the new one", func() bool {
		for _, m := range t.cluster.members {
			if status := m.status(t); status == nil || status.Leader != next.id(t) {
				return false
			}
		}
		return true
	})
	t.put(c, t.key("k"), "1")
	t.hears("a watch meanwhile", channel, "put k=1")
}

func upkeepMembers(t *T) {
	c := t.client(at(t.cluster.members[0].endpoint()))
	// A member tells its name and its clients' address when it serves.
	t.until("all members are listed with their addresses", func() bool {
		list, err := c.MemberList(t.ctx)
		t.must(err)
		t.equal("members", len(list.Members), 3)
		for _, m := range list.Members {
			t.check(len(m.PeerURLs) == 1 && !m.IsLearner, "%+v", m)
			if m.Name == "" || len(m.ClientURLs) != 1 {
				return false
			}
		}
		return true
	})
	t.must(c.Sync(t.ctx))
	t.equal("endpoints", len(c.Endpoints()), 3)
	t.cluster.members[0].kill()
	t.putInTime(c, t.key("k"), "1")
	t.equal("by what it was told of", t.value(c, t.key("k")), "1")
}

func upkeepLearner(t *T) {
	c := t.client()
	nowhere := "http://127.0.0.1:1"
	var added *clientv3.MemberAddResponse
	// A member counts as well some seconds after it came back.
	t.until("a learner is added", func() bool {
		var err error
		added, err = c.MemberAddAsLearner(t.ctx, []string{nowhere})
		return err == nil
	})
	id := added.Member.ID
	t.check(added.Member.IsLearner && len(added.Members) == 4, "%+v", added)
	_, err := c.MemberAddAsLearner(t.ctx, []string{nowhere})
	t.check(err != nil, "the same address again")
	// Whether it has the log is known to the leader; every member says so.
	for _, endpoint := range t.cluster.endpoints() {
		_, err = t.client(at(endpoint)).MemberPromote(t.ctx, id)
		t.wantErr("promoted without data", err, rpctypes.ErrMemberLearnerNotReady)
	}
	moved := "http://127.0.0.1:2"
	_, err = c.MemberUpdate(t.ctx, id, []string{moved})
	t.must(err)
	// A member tells what it has carried out, which may be less than the one that was asked to move it.
	t.until("every member has the address", func() bool {
		for _, endpoint := range t.cluster.endpoints() {
			one := t.client(at(endpoint))
			list, err := one.MemberList(t.ctx)
			t.must(err)
			one.Close()
			found := false
			for _, m := range list.Members {
				found = found || m.ID == id && fmt.Sprint(m.PeerURLs) == fmt.Sprint([]string{moved})
			}
			if !found {
				return false
			}
		}
		return true
	})
	removed, err := c.MemberRemove(t.ctx, id)
	t.must(err)
	t.equal("left", len(removed.Members), 3)
	_, err = c.MemberRemove(t.ctx, id)
	t.wantErr("removed again", err, rpctypes.ErrMemberNotFound)
	_, err = c.MemberPromote(t.ctx, t.cluster.members[0].id(t))
	t.wantErr("promoted as a voter", err, rpctypes.ErrMemberNotLearner)
	_, err = c.MemberAdd(t.ctx, []string{fmt.Sprint("http://127.0.0.1:", t.cluster.members[0].peer)})
	t.wantErr("an address that is taken", err, rpctypes.ErrPeerURLExist)
}
