#!/usr/bin/env python3
"""Measures, never gates: one agent's memory and start time, the coordinator's memory with many agents.

usage: tests/bench/fleet_memory.py BIN_FOLDER [AGENTS]     (100 agents need some 2 GB)
"""
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../e2e'))
import harness  # noqa: E402


def pss(pid):
    return (harness.quickstart.Quickstart.pss(pid) or 0) / (1 << 20)


def main():
    harness.BIN = os.path.abspath(sys.argv[1])
    agents = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    fleet = harness.Fleet()
    try:
        fleet.start_coordinator()
        fleet.retort('class', 'set', 'any')
        token = fleet.retort('token', 'create', '--kind', 'enrolment', '--uses', str(agents + 10))['token']
        with open(fleet.path('enrol'), 'w', encoding='utf-8') as file:
            file.write(token)
        time.sleep(1)
        print(f'coordinator, no agent: {pss(fleet.coordinator.pid):.1f} MiB PSS')
        for n in range(agents):
            name = f'a{n}'
            started = time.monotonic()
            fleet.start_agent(name)
            # One at a time: the profile of each is measured on a machine that is otherwise quiet.
            fleet.wait(f'{name} to enrol', lambda n=name: fleet.status(n).get('class') == 'any', fleet.agents[name])
            if n == 0:
                print(f'first start of an agent, profile and enrolment included: {time.monotonic() - started:.2f} s')
        time.sleep(5)
        figures = [pss(process.pid) for process in fleet.agents.values()]
        print(f'agent: {statistics.median(figures):.1f} MiB PSS (median of {agents}, pages shared among them)')
        print(f'coordinator, {agents} agents: {pss(fleet.coordinator.pid):.1f} MiB PSS')
        for process in list(fleet.agents.values())[1:]:
            process.terminate()
            process.wait()
        time.sleep(1)
        print(f'agent, alone: {pss(fleet.agents["a0"].pid):.1f} MiB PSS')
        fleet.agents['a0'].terminate()
        fleet.agents['a0'].wait()
        os.remove(fleet.path('a0.json'))
        started = time.monotonic()
        fleet.start_agent('a0')
        fleet.wait('a0', lambda: fleet.status('a0').get('class') == 'any', fleet.agents['a0'])
        print(f'second start of an agent, until the link is up: {time.monotonic() - started:.2f} s')
    finally:
        fleet.close()


if __name__ == '__main__':
    main()
