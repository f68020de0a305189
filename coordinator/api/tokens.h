#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/wire/record_table.h"

namespace retort {

/// What a token may be for: a scope of the REST interface, or letting devices in.
inline constexpr std::array<std::string_view, 5> kTokenKinds{"viewer", "operator", "admin", "device-enroller",
                                                             "enrolment"};

/// Who may enrol with a token, and whether at once.
struct EnrolmentTerms {
  std::vector<std::string> allowed;  ///< device keys (Z85) or hardware ids; none: any device
  bool manual = false;               ///< devices wait for an operator's accept
};

/// Tokens of operators and devices. A token is shown once; only its SHA-256 is kept: the secret has 256
/// random bits, so that no slow hash is needed. Thread: reactor.
class Tokens {
 public:
  Tokens(Store& store, const Clock& clock, RandomSource& random)
      : table_(store, "tokens"), store_(store), clock_(clock), random_(random) {}
  struct Made {
    TokenRecord record;
    std::string secret;  ///< "<id>.<64 hexadecimal characters>"
  };
  /// kind: one of kTokenKinds; uses -1: without limit; expires 0: never. Terms go with enrolment tokens.
  Result<Made> create(const std::string& kind, const std::string& name, std::int64_t uses, UnixMillis expires,
                      EnrolmentTerms terms = {});
  /// kDenied: unknown, of another kind, expired, or used up. The comparison takes the same time whatever the
  /// guess.
  Result<TokenRecord> check(const std::string& secret, std::string_view kind);
  /// check() of any kind.
  Result<TokenRecord> identify(const std::string& secret);
  /// To the minute; 0: never.
  UnixMillis last_used(const std::string& id) const;
  /// One use of an enrolment token by this device; the token's record. On disk with the store's next sync.
  /// kDenied also where the token is for other devices: no use is spent.
  Result<TokenRecord> enrol(const std::string& secret, const std::string& public_key,
                            const std::string& hardware_id);
  Result<std::vector<TokenRecord>> all() const { return table_.all(); }
  Result<void> revoke(const std::string& id);

 private:
  RecordTable<TokenRecord> table_;
  Store& store_;
  const Clock& clock_;
  RandomSource& random_;
  std::map<std::string, UnixMillis> used_;  ///< as far as written, by id
};

}  // namespace retort
