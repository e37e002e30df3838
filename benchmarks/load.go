// The load of a benchmark, for a group of etcd, from the language that etcd's users write: as worker.py does it
// for the others. Each line of standard input is a request, ["put", 64, 1.0]: what, how many at once, for how
// many seconds; each gets one line as its answer, in JSON. ["load", 256, 1000000] puts so many keys, each once.
// Arguments: addresses of the leader, once for each connection.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
)

const keys = 1000

var values [keys]string

// once does the n-th request of a kind.
func once(client *clientv3.Client, what string, n int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key := fmt.Sprintf("%016d", n%keys)
	if what == "load" {
		_, err := client.Put(ctx, fmt.Sprintf("%016d", n*982451653%1000000000000), values[n%keys])
		return err
	}
	if what == "put" {
		_, err := client.Put(ctx, key, values[n%keys])
		return err
	}
	options := []clientv3.OpOption{}
	if what == "stale" {
		options = append(options, clientv3.WithSerializable())
	}
	found, err := client.Get(ctx, key, options...)
	if err == nil && len(found.Kvs) == 0 {
		err = fmt.Errorf("%s is missing", key)
	}
	return err
}

// measure keeps so many requests under way, each in a goroutine of its own, spread over the connections.
func measure(clients []*clientv3.Client, what string, atOnce int, seconds float64, atLeast int64) (interface{}, error) {
	var begun, ended int64
	var failed atomic.Value
	latencies := make([][]float64, atOnce)
	start := time.Now()
	var all sync.WaitGroup
	for i := 0; i < atOnce; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			for failed.Load() == nil {
				if time.Since(start).Seconds() >= seconds && atomic.LoadInt64(&ended) >= atLeast {
					return
				}
				began := time.Now()
				if err := once(clients[i%len(clients)], what, atomic.AddInt64(&begun, 1)); err != nil {
					failed.Store(err)
					return
				}
				latencies[i] = append(latencies[i], time.Since(began).Seconds())
				atomic.AddInt64(&ended, 1)
			}
		}(i)
	}
	all.Wait()
	took := time.Since(start).Seconds()
	if err := failed.Load(); err != nil {
		return nil, err.(error)
	}
	var inOrder []float64
	for _, each := range latencies {
		inOrder = append(inOrder, each...)
	}
	sort.Float64s(inOrder)
	return map[string]float64{
		"per_second": float64(len(inOrder)) / took,
		"p50_ms":     1000 * inOrder[len(inOrder)/2],
		"p99_ms":     1000 * inOrder[len(inOrder)*99/100],
	}, nil
}

func main() {
	var clients []*clientv3.Client
	for _, address := range os.Args[1:] {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: 10 * time.Second})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		clients = append(clients, client)
	}
	for i := range values {
		value := make([]byte, 128)
		rand.Read(value)
		values[i] = string(value)
	}
	answers := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var request []interface{}
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		what, atOnce, seconds, atLeast := request[0].(string), int(request[1].(float64)), request[2].(float64), int64(0)
		if what == "fill" {
			what, atLeast = "put", 2*keys
		} else if what == "load" {
			atLeast, seconds = int64(seconds), 0
		}
		answer, err := measure(clients, what, atOnce, seconds, atLeast)
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		answers.Encode(answer)
	}
}
