#pragma once

// Shared by the two encoders of this folder; not for others, who must not see generated headers.
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"
#include "common/model/device.h"
#include "device.capnp.h"

namespace retort::wire {

inline std::string text(capnp::Text::Reader reader) { return std::string(reader.begin(), reader.size()); }
inline kj::StringPtr text(const std::string& value) { return kj::StringPtr(value.c_str(), value.size()); }

void write(schema::Profile::Builder out, const DeviceProfile& profile);
DeviceProfile read(schema::Profile::Reader in);
void write(schema::Status::Builder out, const DeviceStatus& status);
DeviceStatus read(schema::Status::Reader in);
void write_labels(capnp::List<schema::Label>::Builder out, const std::map<std::string, std::string>& labels);
std::map<std::string, std::string> read_labels(capnp::List<schema::Label>::Reader in);

std::string to_bytes(capnp::MallocMessageBuilder& message);

/// Runs `work` over the message in `bytes`, which are copied to aligned words where they are not aligned.
/// What Cap'n Proto throws about malformed input becomes kCorrupt.
template <typename Root, typename Work>
auto parse_message(std::string_view bytes, std::string_view where, Work work)
    -> decltype(work(std::declval<typename Root::Reader>())) {
  if (bytes.size() % sizeof(capnp::word) != 0 || bytes.empty())
    return fail(ErrorCode::kCorrupt, std::string(where), "{} bytes are not a whole number of words",
                bytes.size());
  kj::Array<capnp::word> copy;
  kj::ArrayPtr<const capnp::word> words(reinterpret_cast<const capnp::word*>(bytes.data()),
                                        bytes.size() / sizeof(capnp::word));
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(capnp::word) != 0) {
    copy = kj::heapArray<capnp::word>(words.size());
    memcpy(copy.asBytes().begin(), bytes.data(), bytes.size());
    words = copy;
  }
  try {
    capnp::ReaderOptions options;
    options.nestingLimit = 16;
    options.traversalLimitInWords = 4 * words.size() + 1024;
    capnp::FlatArrayMessageReader reader(words, options);
    return work(reader.getRoot<Root>());
  } catch (const kj::Exception& error) {
    return fail(ErrorCode::kCorrupt, std::string(where), "malformed message: {}",
                error.getDescription().cStr());
  } catch (const std::exception& error) {
    return fail(ErrorCode::kCorrupt, std::string(where), "malformed message: {}", error.what());
  }
}

}  // namespace retort::wire
