#include <zmq.h>

#include <array>

#include "common/core/file.h"
#include "common/net/link.h"

namespace retort {

CurveKeys make_curve_keys() {
  std::array<char, 41> public_key{}, secret_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0)
    std::abort();  // libzmq was built without CURVE
  return {public_key.data(), secret_key.data()};
}

Result<CurveKeys> load_or_make_curve_keys(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    const CurveKeys keys = make_curve_keys();
    RETORT_TRY(write_file_atomic(path, keys.public_key + "\n" + keys.secret_key + "\n", 0600));
    return keys;
  }
  const std::string text = RETORT_TRY(read_file(path, 4096));
  if (text.size() < 81 || text[40] != '\n')
    return fail(ErrorCode::kCorrupt, path.string(), "not a key pair (two lines of 40 characters)");
  CurveKeys keys{text.substr(0, 40), text.substr(41, 40)};
  std::array<char, 41> derived{};
  if (zmq_curve_public(derived.data(), keys.secret_key.c_str()) != 0 || keys.public_key != derived.data())
    return fail(ErrorCode::kCorrupt, path.string(), "its two keys do not belong together");
  return keys;
}

}  // namespace retort
