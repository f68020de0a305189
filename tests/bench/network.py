"""A network namespace behind a virtual cable: for benches that need a link of their own, to count its bytes or to make it
worse. Needs root, iproute2, and nftables to lose packets: the kernels of some virtual machines have no netem."""
import os
import subprocess


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Network:
    """`host` and `inside` are the addresses of the two ends."""

    def __init__(self):
        number = os.getpid() % 16384
        self.name = f'retort-{number}'
        self.cable = f'rt{number}h'
        net = f'10.{200 + number // 8192}.{number // 32 % 256}.'
        base = number % 32 * 4
        self.host, self.inside = f'{net}{base + 1}', f'{net}{base + 2}'
        run('ip', 'netns', 'add', self.name)
        try:
            run('ip', 'link', 'add', self.cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', self.name)
            # Neighbour discovery would be counted as the agent's traffic.
            run('sysctl', '-qw', f'net.ipv6.conf.{self.cable}.disable_ipv6=1')
            self.exec('sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=1')
            run('ip', 'addr', 'add', f'{self.host}/30', 'dev', self.cable)
            run('ip', 'link', 'set', self.cable, 'up')
            self.exec('ip', 'addr', 'add', f'{self.inside}/30', 'dev', 'eth0')
            self.exec('ip', 'link', 'set', 'eth0', 'up')
            self.exec('ip', 'link', 'set', 'lo', 'up')
        except BaseException:
            self.close()
            raise

    @property
    def prefix(self):
        """What a command begins with that is to run inside."""
        return ('ip', 'netns', 'exec', self.name)

    def exec(self, *command):
        return run(*self.prefix, *command)

    def worsen(self, loss_percent, delay_ms):
        """Each end loses so much of what comes to it, and where the kernel has netem holds back what it sends (normal, a
        tenth around it). Whether it delays."""
        how = ('delay', f'{delay_ms}ms', f'{delay_ms / 10}ms')
        delays = delay_ms > 0 and subprocess.run(('tc', 'qdisc', 'add', 'dev', self.cable, 'root', 'netem', 'limit', '100000', *how),
                                                 check=False, capture_output=True).returncode == 0
        if delays:
            self.exec('tc', 'qdisc', 'add', 'dev', 'eth0', 'root', 'netem', 'limit', '100000', *how)
        for prefix, device in ((), self.cable), (self.prefix, 'eth0'):
            table = f'loss_{device}'
            run(*prefix, 'nft', f'table netdev {table} {{ chain arriving {{ type filter hook ingress device {device} priority 0; '
                f'counter; numgen random mod 1000 < {round(loss_percent * 10)} counter drop; }}; }}')
        return delays

    def lost(self):
        """Of the frames that came to the host and to the inner end: (lost, all) each."""
        out = []
        for prefix, device in ((), self.cable), (self.prefix, 'eth0'):
            text = run(*prefix, 'nft', 'list', 'table', 'netdev', f'loss_{device}')
            every, dropped = (int(part.split()[0]) for part in text.split('counter packets ')[1:])
            out.append((dropped, every))
        return out

    def count(self):
        """Bytes (Ethernet headers included) and frames, both ways, since the cable was made."""
        def of(name):
            with open(f'/sys/class/net/{self.cable}/statistics/{name}', encoding='ascii') as file:
                return int(file.read())
        return of('rx_bytes') + of('tx_bytes'), of('rx_packets') + of('tx_packets')

    def close(self):
        subprocess.run(['nft', 'delete', 'table', 'netdev', f'loss_{self.cable}'], check=False, capture_output=True)
        subprocess.run(['ip', 'link', 'del', self.cable], check=False, capture_output=True)
        subprocess.run(['ip', 'netns', 'del', self.name], check=False, capture_output=True)
