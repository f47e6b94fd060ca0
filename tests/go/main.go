// The Go client that most of etcd's users have, clientv3, against a server that is given as a command.
//
// What the cases check are the promises that etcd's own tests of watches, keys, leases, locks, users and members rest on, adapted
// to processes that are reached through their ports, stopped and killed. Case W-07 of ../watch_cases.txt.
//
//	go-client -right target/release/everwatch            every case has to pass
//	go-client -left etcd -right target/release/everwatch the same, and says which cases etcd does not pass
//	go-client -right etcd -only 'watch_.*'               some cases
//
// A case never sleeps: it waits for an event, an answer or a state, and what should not arrive is looked for before a marker that
// has to. Every wait ends with the time of the case. A world (a cluster of one or three members) is shared by the cases that
// name it, one after the other, each with keys of its own; a case that fails leaves the next one a new world.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"syscall"
	"time"
)

type testCase struct {
	name  string
	world world
	run   func(*T)
}

// How long one case may take. The longest are those that wait for elections and for leases that run out.
const caseTime = 40 * time.Second

// What a case that does not end in its time is still given to notice that.
const lastWords = 5 * time.Second

type result struct {
	name  string
	took  time.Duration
	error string
}

func allCases() []testCase {
	var all []testCase
	for _, some := range [][]testCase{watchCases, streamCases, kvCases, leaseCases, recipeCases, upkeepCases, userCases, clusterCases} {
		all = append(all, some...)
	}
	return all
}

func main() {
	left := flag.String("left", "", "the command of a server whose differences are only reported")
	right := flag.String("right", "", "the command of the server that has to pass")
	only := flag.String("only", ".*", "cases whose whole name this expression matches")
	verbose := flag.Bool("v", false, "say how long each case took")
	flag.Parse()
	wanted, err := regexp.Compile("^(" + *only + ")$")
	if err != nil || *right == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	var cases []testCase
	for _, c := range allCases() {
		if wanted.MatchString(c.name) {
			cases = append(cases, c)
		}
	}
	// Processes are ended by whoever started them, also when the program is told to stop.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		endAll()
		os.Exit(130)
	}()

	// Beside each other, for most of the time is spent on waiting for elections and leases.
	var reference, results []result
	var group sync.WaitGroup
	if *left != "" {
		group.Add(1)
		go func() {
			defer group.Done()
			reference = runAll(*left, cases)
		}()
	}
	results = runAll(*right, cases)
	group.Wait()
	report := func(word string, r result) {
		text := fmt.Sprintf("%-7s %6d ms  %s", word, r.took.Milliseconds(), r.name)
		if r.error != "" {
			text += ": " + r.error
		}
		fmt.Println(text)
	}
	passed, failed := 0, 0
	for _, r := range results {
		switch {
		case r.error != "":
			failed++
			report("FAILED", r)
		default:
			passed++
			if *verbose {
				report("passed", r)
			}
		}
	}
	if *left != "" {
		equal := 0
		for _, r := range reference {
			switch {
			case r.error != "":
				report("differs", r)
			default:
				equal++
				if *verbose {
					report("equal", r)
				}
			}
		}
		fmt.Printf("%s passes %d of %d\n", *left, equal, len(cases))
	}
	endAll()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// The worlds run beside each other, the cases of one in turn. Results come in the order of the cases.
func runAll(command string, cases []testCase) []result {
	results := make([]result, len(cases))
	var group sync.WaitGroup
	for _, w := range []world{alone, guarded, three} {
		group.Add(1)
		go func(w world) {
			defer group.Done()
			var c *cluster
			defer func() {
				if c != nil {
					c.close()
				}
			}()
			for i, one := range cases {
				if one.world != w {
					continue
				}
				began := time.Now()
				message := ""
				if c == nil {
					c, message = startCluster(command, w)
				}
				if message == "" {
					message = runCase(one, c)
				}
				results[i] = result{one.name, time.Since(began), message}
				if message != "" && c != nil {
					c.close()
					c = nil
				}
			}
		}(w)
	}
	group.Wait()
	return results
}

func runCase(one testCase, c *cluster) string {
	t, release := newT(one.name, c)
	ended := make(chan string, 1)
	go func() {
		// Cleaning up may hang where the client does, and counts as the case.
		var message string
		defer func() { ended <- message }()
		defer release()
		defer func() {
			if reason := recover(); reason != nil {
				if why, ok := reason.(failure); ok {
					message = string(why)
				} else {
					message = fmt.Sprint("panic: ", reason)
				}
			}
		}()
		if problem := c.heal(t.ctx); problem != nil {
			t.fail("before the case: %v", problem)
		}
		one.run(t)
	}()
	select {
	case message := <-ended:
		return message
	case <-time.After(caseTime + lastWords):
		return "did not end"
	}
}
