"""An agent of five lines, as a user may write it: python urllib_agent.py CALLS; knows only its environment.

Prints the status of each call.
"""

import json
import os
import sys
import urllib.error
import urllib.request

for number in range(int(sys.argv[1])):
    body = {"model": "claude-sonnet-4-5", "max_tokens": 20, "messages": [{"role": "user", "content": f"call {number}"}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-api-key": os.environ["ANTHROPIC_API_KEY"]},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            said = f"{answer.status}"
    except urllib.error.HTTPError as refused:
        with refused:
            said = f"{refused.status} {json.load(refused)['error']['type']} {refused.headers['x-should-retry']}"
    sys.stdout.write(f"{said}\n")
