"""Clients that send batches under ids of their own, until a time is over, and say what they saw.

usage: keyed_clients.py URL SECONDS CLIENTS PREFIX

Each client sends one batch of 100 events after the other, each with an Idempotency-Key, and rests 20 ms in between: one
node alone must keep up, or its 503s for an overload would be counted here. An error is counted, and the same batch sent
again under the same id until it is taken. Prints {"batches", "events", "errors": {status or fault: count},
"slowest_seconds"}; event ids begin with PREFIX.
"""

import http.client
import json
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

EVENTS_A_BATCH = 100
ATTEMPTS_MAX = 100
REST_SECONDS = 0.02


def send(connection, body, batch_id):
    connection.request(
        "POST", "/v1/ingest/batch", body, {"Content-Type": "application/json", "Idempotency-Key": batch_id}
    )
    answer = connection.getresponse()
    answer.read()
    return answer.status


def client(number, address, prefix, until, batches, errors, times):
    connection = http.client.HTTPConnection(address, timeout=70)
    sequence = 0
    while time.monotonic() < until:
        batch_id = f"{prefix}-{number}-{sequence}"
        event = {"service_name": "test", "event_type": "balanced", "payload": {"text": "x" * 200}}
        events = [{"event_id": f"{batch_id}-{index}", **event} for index in range(EVENTS_A_BATCH)]
        body = json.dumps(events)
        for _ in range(ATTEMPTS_MAX):
            started = time.monotonic()
            try:
                status = send(connection, body, batch_id)
            except (OSError, http.client.HTTPException) as fault:
                errors[type(fault).__name__] += 1
                connection.close()
                continue
            finally:
                times.append(time.monotonic() - started)
            if status in (200, 202):
                break
            errors[str(status)] += 1
            time.sleep(0.2)
        else:
            raise SystemExit(f"batch {batch_id} was not taken in {ATTEMPTS_MAX} attempts: {dict(errors)}")
        batches[number] += 1
        sequence += 1
        time.sleep(REST_SECONDS)


def main():
    url, seconds, clients, prefix = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    batches, errors, times = Counter(), Counter(), []
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(number, urlsplit(url).netloc, prefix, until, batches, errors, times))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = batches.total()
    print(
        json.dumps(
            {
                "batches": sent,
                "events": sent * EVENTS_A_BATCH,
                "errors": dict(errors),
                "slowest_seconds": round(max(times), 3),
            }
        )
    )


main()
