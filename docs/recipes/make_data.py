#!/usr/bin/env python3
"""Makes the data that the recipes beside this file learn from.

usage: make_data.py fashion OUT [--from /usr/share/datasets/fashion-mnist]   (Debian: dataset-fashion-mnist)
       make_data.py ai4i OUT --from ai4i2020.csv
       make_data.py hwu64 OUT --from FOLDER                                  (train.jsonl, test.jsonl)
       make_data.py debian OUT --from CHECKOUT                               (Retort's own, for its demo teacher)
"""
import argparse
import collections
import gzip
import json
import os
import shutil
import struct
import subprocess
import unicodedata


def write_idx(path, dimensions, data):
    with open(path, 'wb') as file:
        file.write(struct.pack('>HBB', 0, 8, len(dimensions)) + struct.pack(f'>{len(dimensions)}I', *dimensions) + data)


def fashion(out, source):
    """The images as they are, and a part of them as 3×32×32: a border of two, the same in each channel."""
    for split, keep in (('train', 20000), ('t10k', 10000)):
        files = {}
        for kind, dimensions in (('images', 3), ('labels', 1)):
            name = f'{split}-{kind}-idx{dimensions}-ubyte'
            with gzip.open(os.path.join(source, name + '.gz')) as file:
                files[kind] = file.read()
            with open(os.path.join(out, name), 'wb') as file:
                file.write(files[kind])
        pixels, colour = files['images'][16:], bytearray()
        for image in range(keep):
            plane = bytearray(32 * 32)
            for row in range(28):
                at = image * 784 + row * 28
                plane[(row + 2) * 32 + 2:(row + 2) * 32 + 30] = pixels[at:at + 28]
            colour += plane * 3
        write_idx(os.path.join(out, f'{split}-3x32x32'), (keep, 3, 32, 32), colour)
        write_idx(os.path.join(out, f'{split}-3x32x32-labels'), (keep,), files['labels'][8:8 + keep])


def ai4i(out, source):
    """Sensors of a milling machine and what failed. Random failures, which no sensor tells of, count as ok."""
    splits = {'train': [], 'test': []}
    with open(source, encoding='utf-8-sig') as file:
        names = file.readline().strip().split(',')
        for line in file:
            row = dict(zip(names, line.strip().split(',')))
            label = next((kind for kind in ('TWF', 'HDF', 'PWF', 'OSF') if row[kind] == '1'), 'ok')
            values = {'quality': 'LMH'.index(row['Type'])}
            for name, column in (('air_temperature', 'Air temperature [K]'), ('process_temperature', 'Process temperature [K]'),
                                 ('speed', 'Rotational speed [rpm]'), ('torque', 'Torque [Nm]'), ('wear', 'Tool wear [min]')):
                values[name] = float(row[column])
            splits['test' if int(row['UDI']) % 5 == 0 else 'train'].append({'input': values, 'label': label})
    for name, rows in splits.items():
        with open(os.path.join(out, f'ai4i-{name}.jsonl'), 'w', encoding='utf-8') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)


def words_of(text):
    """BERT's splitting: lower case, no accents, punctuation by itself."""
    text = ''.join(c for c in unicodedata.normalize('NFD', text.lower()) if unicodedata.category(c) != 'Mn')
    word = ''
    for c in text + ' ':
        if c.isalnum():
            word += c
            continue
        if word:
            yield word
        word = ''
        if not c.isspace():
            yield c


def hwu64(out, source):
    """The texts as they are, and a WordPiece tokenizer of the training texts' characters and words."""
    counts, characters = collections.Counter(), set()
    for name in ('train', 'test'):
        with open(os.path.join(source, name + '.jsonl'), encoding='utf-8') as file:
            rows = [json.loads(line) for line in file]
        with open(os.path.join(out, f'hwu64-{name}.jsonl'), 'w', encoding='utf-8') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)
        if name == 'train':
            for row in rows:
                for word in words_of(row['text']):
                    counts[word] += 1
                    characters |= set(word)
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    pieces = special + sorted(characters) + ['##' + c for c in sorted(characters)]
    pieces += [word for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
               if count >= 2 and len(word) > 1]
    pieces += ['##' + end for end in ('ing', 'ed', 'er', 'ly', 'es', 'tion', 'ment') if len(end) > 1]
    added = [{'id': i, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
              'special': True} for i, token in enumerate(special)]
    tokenizer = {
        'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
        'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': None,
                       'lowercase': True},
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'post_processor': {'type': 'TemplateProcessing', 'single': [
            {'SpecialToken': {'id': '[CLS]', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}},
            {'SpecialToken': {'id': '[SEP]', 'type_id': 0}}], 'pair': [], 'special_tokens': {
                '[CLS]': {'id': '[CLS]', 'ids': [2], 'tokens': ['[CLS]']}, '[SEP]': {'id': '[SEP]', 'ids': [3], 'tokens': ['[SEP]']}}},
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {'type': 'WordPiece', 'unk_token': '[UNK]', 'continuing_subword_prefix': '##',
                  'max_input_chars_per_word': 100, 'vocab': {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}}}
    folder = os.path.join(out, 'hwu64-tokenizer')
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'tokenizer.json'), 'w', encoding='utf-8') as file:
        json.dump(tokenizer, file)
    with open(os.path.join(folder, 'tokenizer_config.json'), 'w', encoding='utf-8') as file:
        json.dump({'cls_token': '[CLS]', 'sep_token': '[SEP]', 'unk_token': '[UNK]', 'pad_token': '[PAD]',
                   'mask_token': '[MASK]', 'do_lower_case': True, 'tokenizer_class': 'BertTokenizer'}, file)


def debian(out, source):
    """This machine's package descriptions, those of Python's packages apart as well, and the demo teacher."""
    folder = os.path.join(out, 'debian')
    subprocess.run([os.path.join(source, 'scripts/debian-descriptions'), folder], check=True)
    for split in ('distil', 'held_out'):
        with open(os.path.join(folder, split + '.jsonl'), encoding='utf-8') as file:
            lines = [line for line in file if json.loads(line)['label'] == 'python']
        with open(os.path.join(folder, f'python-{split}.jsonl'), 'w', encoding='utf-8') as file:
            file.writelines(lines)
    shutil.copytree(os.path.join(source, 'scripts/demo-teacher/model'), os.path.join(folder, 'teacher'), dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['fashion', 'ai4i', 'hwu64', 'debian'])
    parser.add_argument('out')
    parser.add_argument('--from', dest='source')
    arguments = parser.parse_args()
    if arguments.source is None and arguments.what != 'fashion':
        parser.error(f'{arguments.what} needs --from: where its data are')
    os.makedirs(arguments.out, exist_ok=True)
    try:
        {'fashion': fashion, 'ai4i': ai4i, 'hwu64': hwu64, 'debian': debian}[arguments.what](
            arguments.out, arguments.source or '/usr/share/datasets/fashion-mnist')
    except OSError as error:
        hint = "; Debian's package dataset-fashion-mnist has it" if arguments.what == 'fashion' else ''
        parser.exit(1, f'make_data.py: {error.filename}: {error.strerror}{hint}\n')


if __name__ == '__main__':
    main()
