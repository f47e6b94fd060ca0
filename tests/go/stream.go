package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/clientv3"
	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Watches as the stream has them, with what clientv3 has no word for: ids, refusals, fragments one by one.
var streamCases = []testCase{
	{"stream_ids_are_given_and_chosen", alone, streamIDs},
	{"stream_refuses_an_empty_range_and_goes_on", alone, streamEmptyRange},
	{"stream_answers_a_cancel", alone, streamCancel},
	{"stream_of_everything_and_of_the_empty_key", alone, streamEverything},
	{"stream_created_says_the_revision", alone, streamCreated},
	{"stream_in_fragments", alone, streamFragments},
	{"stream_progress_is_for_all_of_it", alone, streamProgress},
	{"stream_that_is_half_closed", alone, streamHalfClosed},
	{"streams_that_end_leave_the_others", alone, streamsEnd},
}

type stream struct {
	pb.Watch_WatchClient
	t      *T
	cancel context.CancelFunc
	heard  chan *pb.WatchResponse
	err    error
}

func (t *T) stream(c *clientv3.Client) *stream {
	ctx, cancel := context.WithCancel(t.ctx)
	calls, err := pb.NewWatchClient(c.ActiveConnection()).Watch(ctx)
	t.must(err)
	t.later(cancel)
	s := &stream{Watch_WatchClient: calls, t: t, cancel: cancel, heard: make(chan *pb.WatchResponse, 1000)}
	go func() {
		defer close(s.heard)
		for {
			response, err := calls.Recv()
			if err != nil {
				s.err = err
				return
			}
			s.heard <- response
		}
	}()
	return s
}

func (s *stream) next() *pb.WatchResponse {
	select {
	case response, open := <-s.heard:
		s.t.check(open, "the stream ended: %v", s.err)
		return response
	case <-s.t.ctx.Done():
		s.t.fail("no response in time")
		panic("not reached")
	}
}

func (s *stream) create(request *pb.WatchCreateRequest) *pb.WatchResponse {
	s.t.must(s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}))
	return s.next()
}

func (s *stream) end(id int64) {
	s.t.must(s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}))
}

func (s *stream) progress() *pb.WatchResponse {
	s.t.must(s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}))
	return s.next()
}

func about(r *pb.WatchResponse) string {
	var all []string
	for what, is := range map[string]bool{"created": r.Created, "cancelled": r.Canceled} {
		if is {
			all = append(all, what)
		}
	}
	if len(all) == 2 {
		all = []string{"created", "cancelled"}
	}
	for _, event := range r.Events {
		all = append(all, fmt.Sprintf("%s=%s", event.Kv.Key, event.Kv.Value))
	}
	return strings.Join(append([]string{fmt.Sprint(r.WatchId)}, all...), " ")
}

func streamIDs(t *T) {
	c, key := t.client(), t.key("k")
	s := t.stream(c)
	for _, step := range []struct{ asked, given int64 }{{0, 0}, {2, 2}, {0, 1}, {0, 3}, {100, 100}, {0, 4}} {
		t.equal("created", about(s.create(&pb.WatchCreateRequest{Key: []byte(key), WatchId: step.asked})), fmt.Sprint(step.given, " created"))
	}
	again := s.create(&pb.WatchCreateRequest{Key: []byte(key), WatchId: 2})
	t.check(again.WatchId == -1 && again.Canceled, "an id that is in use: %v", again)
	t.put(c, key, "1")
	var ids int64
	for i := 0; i < 6; i++ {
		response := s.next()
		t.equal("events", len(response.Events), 1)
		ids += response.WatchId
	}
	t.equal("sum of the ids", ids, 0+2+1+3+100+4)
	s.end(100)
	t.equal("cancelled", about(s.next()), "100 cancelled")
	t.equal("free again", about(s.create(&pb.WatchCreateRequest{Key: []byte(key), WatchId: 100})), "100 created")
	// Another stream has ids of its own.
	t.equal("another stream", about(t.stream(c).create(&pb.WatchCreateRequest{Key: []byte(key)})), "0 created")
}

func streamEmptyRange(t *T) {
	c := t.client()
	s := t.stream(c)
	for _, pair := range [][2]string{{"b", "a"}, {"b", "b"}} {
		response := s.create(&pb.WatchCreateRequest{Key: []byte(t.key(pair[0])), RangeEnd: []byte(t.key(pair[1]))})
		t.equal("an empty range", about(response), "-1 created cancelled")
	}
	t.equal("a range", about(s.create(&pb.WatchCreateRequest{Key: []byte(t.key("a")), RangeEnd: []byte(t.key("b"))})), "0 created")
	t.put(c, t.key("a1"), "1")
	t.equal("its event", about(s.next()), "0 "+t.key("a1")+"=1")
}

func streamCancel(t *T) {
	c, key := t.client(), t.key("k")
	s := t.stream(c)
	first := t.put(c, key, "1")
	for _, start := range []int64{0, first + 1, first + 1000} {
		id := s.create(&pb.WatchCreateRequest{Key: []byte(key), StartRevision: start}).WatchId
		s.end(id)
		response := s.next()
		t.equal("cancelled", about(response), fmt.Sprint(id, " cancelled"))
		t.check(response.CompactRevision == 0, "a compacted revision: %v", response)
	}
	// One that reads the past is cancelled, too; what was on its way comes before the answer, and nothing after it.
	s.t.must(s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), StartRevision: first, WatchId: 50}}}))
	s.end(50)
	for response := s.next(); !response.Canceled; response = s.next() {
		t.equal("of the one that reads the past", response.WatchId, 50)
	}
	s.end(50)
	s.end(12345)
	id := s.create(&pb.WatchCreateRequest{Key: []byte(key)}).WatchId
	t.put(c, key, "2")
	t.equal("only the new one", about(s.next()), fmt.Sprint(id, " ", key, "=2"))
}

func streamEverything(t *T) {
	c := t.client()
	s := t.stream(c)
	zero := []byte{0}
	// No key and no end is the empty key, which is never written: clients that want everything say so by a zero byte.
	t.equal("everything", about(s.create(&pb.WatchCreateRequest{Key: zero, RangeEnd: zero})), "0 created")
	t.equal("everything, without a key", about(s.create(&pb.WatchCreateRequest{RangeEnd: zero})), "1 created")
	t.put(c, t.key("k"), "1")
	heard := map[string]bool{about(s.next()): true, about(s.next()): true}
	for i := 0; i < 2; i++ {
		t.check(heard[fmt.Sprint(i, " ", t.key("k"), "=1")], "%v", heard)
	}
}

func streamCreated(t *T) {
	c, key := t.client(), t.key("k")
	s := t.stream(c)
	for i := 0; i < 50; i++ {
		revision := t.put(c, key, "1")
		response := s.create(&pb.WatchCreateRequest{Key: []byte(t.key("none")), WatchId: int64(100 + i)})
		t.check(response.Created && response.Header.Revision == revision, "created at %d after a put at %d", response.Header.Revision, revision)
	}
}

func streamFragments(t *T) {
	const size, count, limit = 900 << 10, 6, 2 << 20
	c := t.client()
	first := t.put(c, t.key("0"), strings.Repeat("0", size))
	for i := 1; i < count; i++ {
		t.put(c, t.key(fmt.Sprint(i)), strings.Repeat(fmt.Sprint(i), size))
	}
	s := t.stream(c)
	end := []byte(clientv3.GetPrefixRangeEnd(t.key("")))
	t.equal("created", about(s.create(&pb.WatchCreateRequest{Key: []byte(t.key("")), RangeEnd: end, StartRevision: first, Fragment: true})), "0 created")
	for heard := 0; heard < count; {
		response := s.next()
		for _, event := range response.Events {
			t.equal("the next key", string(event.Kv.Key), t.key(fmt.Sprint(heard)))
			heard++
		}
		t.check(response.Size() <= limit, "a response of %d bytes", response.Size())
		t.check(heard < count || !response.Fragment, "the last one says that there is more")
	}
}

func streamProgress(t *T) {
	c := t.client()
	s := t.stream(c)
	s.create(&pb.WatchCreateRequest{Key: []byte(t.key("a"))})
	s.create(&pb.WatchCreateRequest{Key: []byte(t.key("b"))})
	for i := 0; i < 20; i++ {
		revision := t.put(c, t.key("elsewhere"), "1")
		response := s.progress()
		t.equal("progress", about(response), "-1")
		t.equal("revision", response.Header.Revision, revision)
	}
	revision := t.put(c, t.key("a"), "1")
	t.equal("an event before progress", about(s.progress()), "0 "+t.key("a")+"=1")
	t.equal("progress after it", s.next().Header.Revision, revision)
}

func streamHalfClosed(t *T) {
	c := t.client()
	s := t.stream(c)
	s.create(&pb.WatchCreateRequest{Key: []byte(t.key("k"))})
	t.must(s.CloseSend())
	// etcd ends the watchers of a stream that is half closed, or keeps them; either way, others are served.
	other := t.watch(c, t.key("k"))
	t.put(c, t.key("k"), "1")
	t.hears("another one", other, "put k=1")
	s.cancel()
	for range s.heard {
	}
	code := status.Code(s.err)
	t.check(s.err == io.EOF || code == codes.Canceled || code == codes.Unknown, "ended with %v", s.err)
}

func streamsEnd(t *T) {
	c := t.client()
	kept := t.stream(c)
	kept.create(&pb.WatchCreateRequest{Key: []byte(t.key("k"))})
	for i := 0; i < 50; i++ {
		s := t.stream(c)
		s.create(&pb.WatchCreateRequest{Key: []byte(t.key("k"))})
		s.cancel()
		for range s.heard {
		}
		t.equal("how it ended", status.Code(s.err), codes.Canceled)
		t.put(c, t.key("k"), fmt.Sprint(i))
		t.equal("the one that stays", about(kept.next()), fmt.Sprint("0 ", t.key("k"), "=", i))
	}
}
