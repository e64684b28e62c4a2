"""hivemind's first DHT node: prints its address and serves until stdin closes."""

import json
import sys

from hivemind import DHT

if __name__ == "__main__":
    setup = json.loads(sys.stdin.readline())
    dht = DHT(start=True, host_maddrs=[f"/ip4/{setup['address']}/tcp/0"])
    print(str(dht.get_visible_maddrs()[0]), flush=True)
    sys.stdin.read()
    dht.shutdown()
