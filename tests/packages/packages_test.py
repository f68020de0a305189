#!/usr/bin/env python3
"""The Debian packages in a Debian of their own, booted with systemd as process 1: install, enrol, serve, survive
kills, a hang and a reboot, upgrade with the state kept, purge.

usage: tests/packages/packages_test.py [--keep]     as root, after scripts/package

Makes build/packages-base once (debootstrap, and what the packages depend on) and works on a copy of it. Needs
debootstrap and systemd-container. Prints what it does; the last line is "packages: ok".
"""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '../..'))
BUILD = os.path.join(ROOT, 'build')
BASE = os.path.join(BUILD, 'packages-base')
STATE = '/var/lib/retort-agent'
started = time.monotonic()


def say(text):
    print(f'[{time.monotonic() - started:6.1f} s] {text}', flush=True)


def host(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options).stdout


def debs():
    found = sorted(glob.glob(os.path.join(BUILD, 'packages/retort-*.deb')))
    assert len(found) == 5, f'build/packages holds {len(found)} of 5 packages: run scripts/package first'
    return found


def in_root(root, *command):
    """A command in the tree that is not booted."""
    try:
        return host('chroot', root, *command, env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'DEBIAN_FRONTEND': 'noninteractive',
                                                   'LC_ALL': 'C.UTF-8'})
    except subprocess.CalledProcessError as error:
        raise AssertionError(f'{" ".join(command)}: status {error.returncode}\n{error.stdout[-3000:]}') from None


def make_base():
    """A minimal Debian with all that the packages depend on, but not themselves."""
    depends = set()
    for deb in debs():
        for alternative in host('dpkg-deb', '-f', deb, 'Depends').split(','):
            name = alternative.split('|')[0].split('(')[0].strip()
            if name and not name.startswith('retort'):
                depends.add(name)
    wanted = ' '.join(sorted(depends))
    stamp = os.path.join(BASE, '.retort-depends')
    if os.path.exists(stamp) and open(stamp, encoding='utf-8').read() == wanted:
        return
    shutil.rmtree(BASE, ignore_errors=True)
    mirror = host('apt-get', 'indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages', 'Codename: bookworm').split()[0]
    say('debootstrap: a minimal Debian 12')
    host('debootstrap', '--variant=minbase', '--include=systemd,systemd-sysv,dbus,iproute2,curl,procps', 'bookworm', BASE, mirror)
    shutil.rmtree(os.path.join(BASE, 'etc/apt'))
    shutil.copytree('/etc/apt', os.path.join(BASE, 'etc/apt'), symlinks=True)
    for keyring in glob.glob('/usr/share/keyrings/*'):
        shutil.copy(keyring, os.path.join(BASE, 'usr/share/keyrings'))
    shutil.copy('/etc/resolv.conf', os.path.join(BASE, 'etc/resolv.conf'))
    say(f'{len(depends)} packages that ours depend on, and theirs (LibTorch among them: a minute or two)')
    in_root(BASE, 'apt-get', 'update')
    in_root(BASE, 'apt-get', 'install', '-y', '--no-install-recommends', *sorted(depends))
    in_root(BASE, 'apt-get', 'clean')
    with open(stamp, 'w', encoding='utf-8') as file:
        file.write(wanted)


class Machine:
    """The tree, booted."""

    def __init__(self, root):
        self.root = root
        self.log = open(root + '.console', 'w', encoding='utf-8')
        self.boot()

    def boot(self):
        self.nspawn = subprocess.Popen(
            ['systemd-nspawn', '-D', self.root, '--register=no', '--keep-unit', '--private-network', '--machine=retort-test', '-b'],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.booted(None)

    def leader(self):
        with open(f'/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children', encoding='ascii') as file:
            for pid in file.read().split():
                with open(f'/proc/{pid}/comm', encoding='ascii') as comm:
                    if comm.read().strip() in ('systemd', 'init'):
                        return int(pid)
        return None

    def booted(self, before):
        def up():
            assert self.nspawn.poll() is None, 'systemd-nspawn ended: ' + open(self.root + '.console', encoding='utf-8').read()[-2000:]
            leader = self.leader()
            return leader not in (None, before) and self.run('systemctl', 'is-system-running', check=False).strip() in ('running', 'degraded')
        until(up, 'the machine is up', 90)

    def run(self, *command, check=True):
        done = subprocess.run(['nsenter', '-t', str(self.leader()), '-m', '-u', '-i', '-n', '-p', '-r', '-w', '--', *command], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'LC_ALL': 'C.UTF-8',
                              'RETORT_TOKEN_FILE': '/var/lib/retort-coordinator/operator.token', 'HOME': '/root', 'SYSTEMD_COLORS': '0'})
        assert not check or done.returncode == 0, f'{" ".join(command)}: status {done.returncode}\n{done.stdout[-3000:]}'
        return done.stdout

    def main_pid(self, unit):
        return int(self.run('systemctl', 'show', '--property=MainPID', '--value', unit))

    def active(self, unit):
        return self.run('systemctl', 'is-active', unit, check=False).strip() == 'active'

    def answers(self):
        """A real completion of the served student, through the public port."""
        text = self.run('curl', '-sS', '-m', '5', 'http://127.0.0.1:8080/v1/completions', '-d',
                        '{"prompt": "a small library", "max_tokens": 4, "temperature": 0}', check=False)
        try:
            return json.loads(text)['usage']['completion_tokens'] <= 4  # fewer where the student ends its text
        except (ValueError, KeyError, TypeError):
            self.last_answer = text
            return False

    def status(self):
        return json.loads(self.run('cat', STATE + '/run/status.json'))

    def reboot(self):
        """As `systemctl reboot` does it, down to process 1; where systemd-nspawn does not start the tree again by itself, a new one does."""
        self.run('systemctl', 'reboot', check=False)
        until(lambda: self.nspawn.poll() is not None or self.leader() is None, 'the machine is down', 60)
        self.nspawn.kill()
        self.nspawn.wait()
        self.boot()

    def stop(self):
        if self.nspawn.poll() is None:
            self.nspawn.send_signal(signal.SIGTERM)
            try:
                self.nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        self.log.close()


def until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f'not within {seconds} s: {what}')


def served_slot(machine):
    for slot in 'ab':
        if machine.active(f'retort-serve@{slot}'):
            return f'retort-serve@{slot}'
    return None


def newer(folder):
    """The same packages with the next version's number."""
    os.makedirs(folder)
    out = []
    for deb in debs():
        tree = os.path.join(folder, 'tree')
        host('dpkg-deb', '-R', deb, tree)
        control = os.path.join(tree, 'DEBIAN/control')
        with open(control, encoding='utf-8') as file:
            text = file.read()
        version = re.search(r'^Version: (\S+)', text, re.M).group(1)
        with open(control, 'w', encoding='utf-8') as file:
            file.write(text.replace(version, version + '+1'))
        out.append(os.path.join(folder, os.path.basename(deb)))
        host('dpkg-deb', '-b', '--root-owner-group', tree, out[-1])
        shutil.rmtree(tree)
    return out


def check(root):
    say('installing ' + ', '.join(os.path.basename(deb) for deb in debs()))
    os.makedirs(root + '/debs')
    for deb in debs():
        shutil.copy(deb, root + '/debs')
    in_root(root, 'sh', '-c', 'dpkg -i /debs/*.deb')
    for package in ('retort-agent', 'retort-serve'):
        print('   ', package, in_root(root, 'dpkg-query', '-W', '-f', '${Installed-Size} KiB installed', package))
    shutil.copytree(os.path.join(ROOT, 'scripts/demo-teacher/model'), root + '/srv/teacher')
    with open(root + '/srv/text.txt', 'w', encoding='utf-8') as file:
        file.write('\n\n'.join(f'library {i} for reading and writing files' for i in range(200)))
    with open(root + '/srv/recipe.yaml', 'w', encoding='utf-8') as file:
        file.write('version: 1\nteacher: {id: demo}\ndata: {train: {dataset: text}}\npasses:\n'
                   '  - prune.structured: {layers: 2, importance: magnitude}\n  - export: {file: student.gguf, format: Q8_0}\n')

    say('booting')
    machine = Machine(root)
    try:
        say('the coordinator')
        machine.run('systemctl', 'enable', '--now', 'retort-coordinator')
        machine.run('retort', 'teacher', 'import', '/srv/teacher', '--name', 'demo')
        machine.run('retort', 'dataset', 'import', '/srv/text.txt', '--name', 'text')
        machine.run('retort', 'class', 'set', 'all')
        say('an agent enrols, the worker makes its student')
        token = machine.run('retort', 'token', 'create', '--kind', 'enrolment').strip().splitlines()[-1]
        with open(root + '/etc/retort/enrolment-token', 'w', encoding='utf-8') as file:
            file.write(token + '\n')
        machine.run('chown', 'retort-agent', '/etc/retort/enrolment-token')
        machine.run('sed', '-i', 's|^RETORT_AGENT_OPTIONS=.*|& --token-file /etc/retort/enrolment-token|', '/etc/retort/agent.env')
        machine.run('systemctl', 'enable', '--now', 'retort-agent')
        machine.run('retort', 'job', 'submit', '/srv/recipe.yaml', '--class', 'all', '--watch')
        listed = machine.run('retort', 'artifact', 'ls')
        machine.run('retort', 'class', 'assign', 'all', re.search(r'\b[0-9a-f]{8,64}\b', listed).group())
        until(machine.answers, 'the student answers', 60)
        until(lambda: machine.status()['state'] == 'idle', 'the student is committed', 60)
        device, slot = machine.status()['device_id'], served_slot(machine)

        say('exposure of the running units')
        for unit, most in (('retort-agent', 1.5), (slot, 1.5), ('retort-agent-profile', 2.0), ('retort-coordinator', 2.0)):
            text = machine.run('systemd-analyze', 'security', '--no-pager', unit)
            level = float(re.search(r'Overall exposure level.*: ([\d.]+)', text).group(1))
            print(f'    {unit}: {level}')
            assert level <= most, f'{unit}: {level} is more than {most}'

        say('another student takes over: no request is lost')
        machine.run('sed', '-i', 's/layers: 2/layers: 1/', '/srv/recipe.yaml')
        machine.run('retort', 'job', 'submit', '/srv/recipe.yaml', '--class', 'all', '--watch')
        listed = re.findall(r'\b[0-9a-f]{8,64}\b', machine.run('retort', 'artifact', 'ls'))
        other = next(name for name in listed if not machine.status()['artifact'].startswith(name))
        machine.run('retort', 'class', 'assign', 'all', other)
        asked = 0
        end = time.monotonic() + 60
        while not (machine.status()['artifact'].startswith(other) and machine.status()['state'] == 'idle'):
            assert machine.answers(), f'request {asked} was lost at the switch: {machine.last_answer!r}'
            asked += 1
            assert time.monotonic() < end, 'the second student is not committed'
        print(f'    {asked} requests, all answered')
        slot = served_slot(machine)

        say('the agent is killed: its student serves on, it comes back and adopts it')
        serve = machine.main_pid(slot)
        agent = machine.main_pid('retort-agent')
        machine.run('systemctl', 'kill', '--signal=KILL', 'retort-agent')
        until(lambda: machine.active('retort-agent') and machine.main_pid('retort-agent') not in (0, agent), 'the agent is back')
        assert machine.main_pid(slot) == serve and machine.answers()

        say('the student is killed: the agent starts it again')
        machine.run('systemctl', 'kill', '--signal=KILL', slot)
        until(lambda: machine.active(slot) and machine.main_pid(slot) not in (0, serve) and machine.answers(), 'the student is back')

        say('students are sealed, and opened in memory by units as well')
        machine.run('sed', '-i', 's|^RETORT_AGENT_OPTIONS=.*|& --seal|', '/etc/retort/agent.env')
        machine.run('systemctl', 'restart', 'retort-agent')
        until(lambda: machine.status().get('sealed'), 'the student is sealed')
        with open(f'{root}{STATE}/slots/{slot[-1]}/model.gguf', 'rb') as file:
            assert file.read(8) == b'RTSEALED'
        serve = machine.main_pid(slot)
        machine.run('systemctl', 'kill', '--signal=KILL', slot)
        until(lambda: machine.active(slot) and machine.main_pid(slot) not in (0, serve) and machine.answers(), 'the sealed student is back')

        say('the agent hangs: the watchdog ends it (30 s)')
        agent = machine.main_pid('retort-agent')
        machine.run('kill', '-STOP', str(agent))
        until(lambda: machine.active('retort-agent') and machine.main_pid('retort-agent') not in (0, agent), 'the watchdog acted', 150)
        assert machine.answers()

        say('reboot')
        machine.reboot()
        until(machine.answers, 'the student answers after the reboot', 60)
        until(lambda: machine.status().get('link') == 'up', 'the link is up after the reboot', 60)
        assert machine.status()['device_id'] == device

        say('upgrade: the state is kept')
        os.makedirs(root + '/debs/newer')
        for deb in newer(root + '.newer'):
            shutil.copy(deb, root + '/debs/newer')
        machine.run('sh', '-c', 'dpkg -i /debs/newer/*.deb')
        assert machine.run('dpkg-query', '-W', '-f', '${Version}', 'retort-agent').endswith('+1')
        until(machine.answers, 'the student answers after the upgrade', 60)
        until(lambda: machine.active('retort-coordinator') and machine.status().get('link') == 'up', 'the link is up after the upgrade', 60)
        assert machine.status()['device_id'] == device
        with open(root + '/etc/retort/agent.env', encoding='utf-8') as file:
            assert 'enrolment-token' in file.read(), 'the upgrade lost the configuration'

        say('purge')
        machine.run('rm', '/etc/retort/enrolment-token')
        machine.run('dpkg', '--purge', 'retort-agent', 'retort-coordinator', 'retort-cli', 'retort-worker', 'retort-serve')
        left = machine.run('sh', '-c', 'find /etc /usr /var/lib -name "*retort*" ! -path "/var/lib/systemd/*"; pgrep -l retort || true').split()
        assert not left, f'purge leaves {left}'
    except AssertionError:
        for unit in ('retort-coordinator', 'retort-agent', 'retort-agent-profile', 'retort-serve@a', 'retort-serve@b'):
            print(f'--- {unit}\n' + machine.run('journalctl', '--no-pager', '-n', '25', '-u', unit, check=False), file=sys.stderr)
        raise
    finally:
        machine.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--keep', action='store_true', help='leave the tree in build/packages-root')
    keep = parser.parse_args().keep
    assert os.geteuid() == 0, 'run as root: it makes and boots a Debian tree'
    for tool in ('debootstrap', 'systemd-nspawn', 'nsenter'):
        assert shutil.which(tool), f'{tool} is missing: apt-get install debootstrap systemd-container'
    root = os.path.join(BUILD, 'packages-root')
    make_base()
    for folder in (root, root + '.newer'):
        shutil.rmtree(folder, ignore_errors=True)
    host('cp', '-a', '--reflink=auto', BASE, root)
    try:
        check(root)
    finally:
        if not keep:
            for folder in (root, root + '.newer'):
                shutil.rmtree(folder, ignore_errors=True)
    say('packages: ok')


if __name__ == '__main__':
    try:
        main()
    except AssertionError as error:
        sys.exit(f'packages: FAILED: {error}')
