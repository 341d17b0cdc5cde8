"""A headless browser to open a page in, and to ask what became of it."""

import json
import os
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A headless browser in real time, driven through the pipes of its DevTools: frames and compilers take theirs."""

    def __init__(self, profile):
        (out, self.to), (self.back, into) = os.pipe(), os.pipe()
        command = [BROWSER, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{out} 4>&{into}', "bash", *command], pass_fds=(out, into),
            stderr=subprocess.DEVNULL)
        os.close(out)
        os.close(into)
        self.number, self.rest, self.complaints = 0, b"", []

    def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.complaints.append(answer)
        return answer["result"]

    def read(self):
        while b"\0" not in self.rest:
            received = os.read(self.back, 2**16)
            assert received, "the browser has ended"
            self.rest += received
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, address):
        target = self.call("Target.createTarget", url=address)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        return session

    def until(self, session, expression):
        """The first value of a JavaScript expression that is neither empty nor false."""
        for _ in range(600):
            value = self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]
            if value.get("value"):
                return value["value"]
            time.sleep(0.1)
        raise AssertionError(f"{expression} stays {value}; complaints: {self.complaints}")

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)
