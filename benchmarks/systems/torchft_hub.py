"""torchft's lighthouse, which forms the quorum: prints its address, serves until stdin closes."""

import json
import sys

from torchft.coordination import LighthouseServer

setup = json.loads(sys.stdin.readline())
lighthouse = LighthouseServer(
    bind=f"{setup['address']}:29510",
    min_replicas=setup["num_peers"],
    join_timeout_ms=100,  # all are there before anyone asks
)
print(f"http://{setup['address']}:29510", flush=True)
sys.stdin.read()
lighthouse.shutdown()
