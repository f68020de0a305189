#!/usr/bin/env python3
"""Measures, never gates: what one real agent costs that has nothing to do but to keep its student serving. It runs in a
network namespace of its own, so that the counters of its cable tell all that it says and hears, TCP/IP included.

usage: tests/bench/idle_agent.py BIN_FOLDER [MINUTES]     (60 unless said; as root)
"""
import contextlib
import os
import socket
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../e2e'))
import harness  # noqa: E402
import network  # noqa: E402

RECIPE = 'version: 1\nteacher: {id: tiny}\npasses:\n  - export: {file: a.gguf, format: F16, label: whole}\n'
SAMPLE_SECONDS, MEDIAN_SECONDS = 10, 600


def cpu_seconds(pid):
    with open(f'/proc/{pid}/stat', encoding='ascii') as file:
        fields = file.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Starter:
    """Starts the agent `one` and takes the time until it tells its service manager READY."""

    def __init__(self, fleet, cable):
        self.fleet, self.cable = fleet, cable
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(fleet.path('notify'))
        self.socket.settimeout(30)

    def start(self, *options):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.fleet.path('one.json'))
        self.fleet.env['NOTIFY_SOCKET'] = self.fleet.path('notify')
        begin = time.monotonic()
        self.fleet.start_agent('one', *options, inside=self.cable.prefix)
        del self.fleet.env['NOTIFY_SOCKET']
        while b'READY=1' not in self.socket.recv(4096).split(b'\n'):
            pass
        return time.monotonic() - begin

    def stop(self):
        agent = self.fleet.agents['one']
        agent.terminate()
        agent.wait(timeout=30)


def spread(seconds):
    return f'{statistics.median(seconds):.3f} s, worst of {len(seconds)}: {max(seconds):.3f} s'


def watch(fleet, cable, minutes):
    pid = fleet.agents['one'].pid
    pss, medians = [], []
    begin, cpu, (sent, frames) = time.monotonic(), cpu_seconds(pid), cable.count()
    while time.monotonic() < begin + minutes * 60:
        time.sleep(SAMPLE_SECONDS)
        pss.append((harness.quickstart.Quickstart.pss(pid) or 0) / 1e6)
        last = pss[-MEDIAN_SECONDS // SAMPLE_SECONDS:]
        if len(last) == MEDIAN_SECONDS // SAMPLE_SECONDS:
            medians.append(statistics.median(last))
    seconds = time.monotonic() - begin
    sent, frames = cable.count()[0] - sent, cable.count()[1] - frames
    print(f'watched for {seconds / 60:.1f} minutes')
    print(f'PSS: {max(medians, default=statistics.median(pss)):.2f} MB, the worst median of 10 minutes; last {pss[-1]:.2f} MB')
    print(f'CPU: {(cpu_seconds(pid) - cpu) / seconds * 100:.3f} % of a core')
    print(f'traffic, both ways: {(sent - 14 * frames) * 8 / seconds / 1000:.3f} kbit/s with TCP/IP, '
          f'{sent * 8 / seconds / 1000:.3f} with Ethernet headers; {frames / seconds * 60:.1f} packets a minute')


def main():
    harness.BIN = os.path.abspath(sys.argv[1])
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 60
    fleet = harness.Fleet()
    cable = None
    try:
        cable = network.Network()
        fleet.start_coordinator('--job-threads', '1', link=f'tcp://{cable.host}:*')
        fleet.retort('teacher', 'import', harness.make_teacher(fleet.path('teacher')), '--name', 'tiny')
        fleet.retort('class', 'set', 'any')
        with open(fleet.path('recipe.yaml'), 'w', encoding='utf-8') as file:
            file.write(RECIPE)
        job = fleet.job_done(fleet.retort('job', 'submit', fleet.path('recipe.yaml'), '--class', 'any')['id'])
        fleet.retort('class', 'assign', 'any', job['artifacts'][0]['sha256'])
        starter = Starter(fleet, cable)
        print(f'first start until READY, nothing to serve yet: {starter.start():.3f} s')

        def settled():
            status = fleet.status('one')
            return status.get('state') == 'idle' and status.get('artifact') and status.get('serve_url')

        fleet.wait('the student', settled)
        adopted, anew = [], []
        for _ in range(10):
            starter.stop()
            adopted.append(starter.start())
        print('start until READY, its student serves on meanwhile:', spread(adopted))
        for _ in range(10):
            fleet.wait('the student', settled)
            starter.stop()
            for pid in fleet.pids('retort-serve'):
                os.kill(pid, 9)
            fleet.wait('the end of the student', lambda: not fleet.pids('retort-serve'))
            anew.append(starter.start())
        print('start until READY, its student started with it:', spread(anew), flush=True)
        fleet.wait('the student', settled)
        time.sleep(min(60, minutes * 6))  # its profile and the first telemetry are over
        watch(fleet, cable, minutes)
    finally:
        fleet.close()
        if cable:
            cable.close()


if __name__ == '__main__':
    main()
