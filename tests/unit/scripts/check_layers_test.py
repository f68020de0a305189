#!/usr/bin/env python3
"""scripts/check-layers finds each kind of breach, and nothing else."""
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '../../..'))
CHECK = os.path.join(ROOT, 'scripts/check-layers')


def check(files, *arguments):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), 'w', encoding='utf-8') as file:
                file.write(text)
        run = subprocess.run([sys.executable, CHECK, '--root', root, *arguments], capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr


class CheckLayers(unittest.TestCase):
    def breach(self, path, include, expect):
        code, output = check({path: f'#pragma once\n#include {include}\n'})
        self.assertEqual(code, 1, output)
        self.assertIn(f'{path}:2: ', output)
        self.assertIn(expect, output)

    def test_breaches(self):
        self.breach('common/core/a.h', '"common/model/device.h"', 'may not include common/model')
        self.breach('common/gguf/a.h', '"coordinator/jobs/job.h"', 'nothing above it')
        self.breach('agent/control/a.cc', '"coordinator/jobs/job.h"', 'never include each other')
        self.breach('coordinator/jobs/a.cc', '"agent/spool/spool.h"', 'never include each other')
        self.breach('agent/control/a.cc', '"agent/serve/http.h"', 'a program of its own')
        self.breach('coordinator/worker/a.cc', '"common/store/store.h"', 'may not include common/store')
        self.breach('agent/control/a.cc', '<zmq.hpp>', 'common/net alone')
        self.breach('coordinator/jobs/a.cc', '<torch/types.h>', 'coordinator/worker alone')
        self.breach('coordinator/api/a.cc', '<rocksdb/db.h>', 'common/store alone')
        self.breach('coordinator/api/a.cc', '"schemas/device.capnp.h"', 'common/wire alone')
        self.breach('common/store/a.cc', '<sqlite3.h>', 'agent/spool alone')
        self.breach('agent/serve/a.cc', '<boost/beast/http.hpp>', 'common/http alone')
        self.breach('agent/control/a.cc', '<CLI/CLI.hpp>', 'main.cc and coordinator/cli alone')
        self.breach('common/core/a.cc', '"a.h"', 'from the root')
        self.breach('common/core/a.cc', '"tests/support/support.h"', 'its tests')

    def test_unknown_folder_of_common(self):
        code, output = check({'common/helpers/a.h': '#pragma once\n'})
        self.assertEqual(code, 1)
        self.assertIn('not in the layering', output)

    def test_what_is_allowed(self):
        code, output = check({
            'common/net/a.cc': '#include <zmq.hpp>\n#include "common/core/result.h"\n',
            'coordinator/worker/a.cc': '#include <torch/types.h>\n#include "common/hf/hf_model.h"\n',
            'agent/control/main.cc': '#include <CLI/CLI.hpp>\n#include "agent/spool/spool.h"\n',
            'tests/unit/a_test.cc': '#include <sqlite3.h>\n#include "agent/spool/spool.h"\n',
        })
        self.assertEqual((code, output), (0, ''))

    def test_this_tree(self):
        run = subprocess.run([sys.executable, CHECK], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stdout), (0, ''))

    def test_a_binary_that_links_what_it_must_not(self):
        with tempfile.TemporaryDirectory() as bin_folder:
            # A real program that links libzmq under the name of one that must not.
            subprocess.run(['g++', '-x', 'c++', '-', '-o', os.path.join(bin_folder, 'retort-serve'),
                            '-Wl,--no-as-needed', '-lzmq'], input='int main() {}', text=True, check=True)
            code, output = check({}, '--binaries', bin_folder)
            self.assertEqual(code, 1)
            self.assertIn('libzmq', output)


if __name__ == '__main__':
    unittest.main(verbosity=2)
