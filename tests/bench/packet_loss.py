#!/usr/bin/env python3
"""Measures, never gates: living devices that are taken for dead where packets are lost, and how fast dead ones are noticed
there. Simulated devices, in a network namespace whose cable loses packets both ways below TCP.

usage: tests/bench/packet_loss.py BIN_FOLDER [DEVICES [MINUTES [LOSS_PERCENT [DELAY_MS]]]]     (1000 5 5 20; as root)
"""
import os
import subprocess
import sys

import network


def main():
    devices, minutes, loss, delay = (sys.argv[2:] + ['1000', '5', '5', '20'][len(sys.argv) - 2:])[:4]
    cable = network.Network()
    try:
        delays = cable.worsen(float(loss), float(delay))
        print(f'{loss} % of packets lost each way,', f'{delay} ms delay each way' if delays else 'no delay: this kernel has no netem',
              flush=True)
        silent = str(max(int(devices) // 10, 1))
        done = subprocess.run([os.path.join(sys.argv[1], 'fleet_sim'), '--listen', cable.host, '--network', cable.name, '--devices', devices,
                               '--per-process', '500', '--join-rate', '200', '--minutes', minutes, '--silent', silent,
                               'watch', 'silence'], check=False)
        for end, (lost, every) in zip(('coordinator', 'devices'), cable.lost()):
            print(f'to the {end}: {lost} of {every} packets lost ({lost / max(every, 1) * 100:.2f} %)')
        sys.exit(done.returncode)
    finally:
        cable.close()


if __name__ == '__main__':
    main()
