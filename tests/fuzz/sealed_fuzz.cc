// fuzz-links: agent_update
// A sealed file, and the file of a sealing key, as a disk in other hands gives them back: refused, or read as
// the artifact whose hash they name.
#include <sys/mman.h>

#include "agent/update/seal_key_file.h"
#include "common/core/base64.h"
#include "common/core/sha256.h"
#include "common/net/key_proof.h"
#include "common/seal/sealed_file.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

namespace {

const SealKey kKey = [] {
  SealKey key;
  key.bytes.fill(7);
  return key;
}();
const CurveKeys kDevice{"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
                        "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"};

File in_memory(std::string_view bytes) {
  File file(::memfd_create("fuzz", 0), "fuzz");
  fuzz::require(file.write_all_at(0, bytes).has_value());
  return file;
}
std::string path_of(const File& file) { return "/proc/self/fd/" + std::to_string(file.fd()); }

std::string sealed(std::string_view bytes, const std::vector<std::pair<std::size_t, std::size_t>>& writes) {
  const File place = in_memory("");
  SealedFile file = *SealedFile::create(*File::open_write(path_of(place), false), "fuzz", kKey,
                                        sha256_hex(bytes), bytes.size());
  for (const auto& [offset, length] : writes)
    fuzz::require(file.write_all_at(offset, bytes.substr(offset, length)).has_value());
  return *read_file(path_of(place));
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const std::string text(1000, 't');
  std::string key_text = "retort-seal-key 1\n" + kDevice.public_key + " ";
  if (const auto box = box_for(kDevice.public_key, std::string(32, 'k')))
    key_text += encode_base64(std::as_bytes(std::span(*box))) + "\n";
  return {sealed(text, {{0, 1000}}), sealed(text, {{500, 500}, {0, 600}, {0, 10}}), sealed(text, {{10, 20}}),
          sealed("", {}), key_text};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const File file = in_memory(bytes);
  if (const auto opened = unseal(path_of(file), kKey)) {
    const auto whole = opened->bytes();
    fuzz::require(sha256_hex({reinterpret_cast<const char*>(whole.data()), whole.size()}) ==
                  *SealedFile::artifact_of(path_of(file)));
  }
  // What is found in it may be read in any part, and gone on with.
  if (auto opened = SealedFile::open(*File::open_write(path_of(file), false), "fuzz", kKey)) {
    std::string part(64, '\0');
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{17}, opened->length() / 2})
      (void)opened->read_exact_at(offset, part).has_value();
    if (opened->length() >= 64) {
      fuzz::require(opened->write_all_at(opened->length() - 64, std::string(64, 'w')).has_value());
      fuzz::require(opened->read_exact_at(opened->length() - 64, part).has_value() &&
                    part == std::string(64, 'w'));
    }
  }
  (void)open_seal_key(path_of(file), kDevice).has_value();
  return 0;
}
