#!/usr/bin/env python3
"""cmake --install puts binaries, units and configuration in their places; the units pass systemd's own check.

usage: install_test.py CMAKE BUILD_FOLDER
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile


def main():
    cmake, build = sys.argv[1:]
    with tempfile.TemporaryDirectory() as prefix:
        def install():
            subprocess.run([cmake, '--install', build, '--prefix', prefix], check=True, stdout=subprocess.DEVNULL)

        install()
        wanted = ['bin/retort', 'bin/retort-coordinator', 'bin/retort-worker', 'bin/retort-agent', 'bin/retort-serve',
                  'etc/retort/coordinator.env', 'etc/retort/agent.env', 'etc/retort/serve.env',
                  'lib/sysusers.d/retort-coordinator.conf', 'lib/sysusers.d/retort-agent.conf',
                  'share/polkit-1/rules.d/50-retort-agent.rules']
        units = ['retort-coordinator.service', 'retort-agent.service', 'retort-agent-profile.service', 'retort-serve@.service']
        for name in wanted + ['lib/systemd/system/' + unit for unit in units]:
            assert os.path.isfile(os.path.join(prefix, name)), name + ' was not installed'
        for unit in units:
            with open(os.path.join(prefix, 'lib/systemd/system', unit), encoding='utf-8') as file:
                text = file.read()
            program = re.search(r'^ExecStart=(\S+)', text, re.M).group(1)
            assert program.startswith(prefix + '/bin/') and os.access(program, os.X_OK), (unit, program)
            assert not re.search(r'@[A-Z]+@', text), unit + ' has a place that was not filled in'
        # An operator's configuration survives the next installation.
        env = os.path.join(prefix, 'etc/retort/agent.env')
        with open(env, 'w', encoding='utf-8') as file:
            file.write('RETORT_COORDINATOR=tcp://mine:1\n')
        install()
        with open(env, encoding='utf-8') as file:
            assert file.read() == 'RETORT_COORDINATOR=tcp://mine:1\n', 'the configuration was overwritten'

        if not shutil.which('systemd-analyze'):
            print('SKIPPED: systemd-analyze is not installed; the units were not verified')
            return 77
        folder = os.path.join(prefix, 'lib/systemd/system')
        shutil.copy(os.path.join(folder, 'retort-serve@.service'), os.path.join(folder, 'retort-serve@a.service'))
        names = [os.path.join(folder, u) for u in units[:3] + ['retort-serve@a.service']]
        run = subprocess.run(['systemd-analyze', 'verify', '--man=no', *names], capture_output=True, text=True,
                             env={**os.environ, 'SYSTEMD_UNIT_PATH': folder + ':'})
        complaints = [line for line in run.stderr.splitlines() if 'retort' in line]
        assert run.returncode == 0 and not complaints, run.stderr
        for name in names:
            run = subprocess.run(['systemd-analyze', 'security', '--offline=true', '--no-pager', name],
                                 capture_output=True, text=True)
            level = re.search(r'Overall exposure level.*: ([\d.]+)', run.stdout)
            assert level, run.stdout + run.stderr
            print(os.path.basename(name), 'exposure', level.group(1))
            most = 1.5 if 'agent.service' in name or 'serve@' in name else 2.0
            assert float(level.group(1)) <= most, 'less hardened than it was'
    return 0


if __name__ == '__main__':
    sys.exit(main())
