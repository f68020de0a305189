#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/net/link.h"
#include "common/seal/sealed_file.h"

namespace retort {

/// KEYS/seal: the sealing key, in a box for each CURVE key that may open it (one; two while the device's key
/// is being changed). So a new CURVE key makes a new box, and what was sealed stays as it is. kNotFound:
/// there is none. kDenied: no box is for these keys, as on another device. kCorrupt: not such a file.
Result<SealKey> open_seal_key(const std::filesystem::path& file, const CurveKeys& keys);
/// Replaces the file in one step.
Result<void> write_seal_key(const std::filesystem::path& file, const SealKey& key,
                            const std::vector<std::string>& public_keys);

/// At start: the key of `folder`, boxed for `keys` alone from now on; made where there is none and `make`
/// says so. One that cannot be opened is put aside as seal.unusable, and said in the log: what was sealed
/// under it is lost.
Result<std::optional<SealKey>> seal_key_at_start(const std::filesystem::path& folder, const CurveKeys& keys,
                                                 bool make);

}  // namespace retort
