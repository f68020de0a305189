#include "common/core/request.h"

#include <boost/json/basic_parser_impl.hpp>
#include <set>
#include <vector>

#include "common/core/utf8.h"

namespace retort {
namespace {

/// What boost::json::basic_parser tells; ends it at a member that its object has already.
struct RepeatedMembers {
  static constexpr std::size_t max_object_size = -1, max_array_size = -1, max_key_size = -1,
                               max_string_size = -1;
  using View = json::string_view;
  using Code = json::error_code;

  std::vector<std::set<std::string, std::less<>>> open;  // names of the objects that are open
  std::string name;  // of the member that is being read; then the repeated one

  bool on_object_begin(Code&) { return open.emplace_back(), true; }
  bool on_object_end(std::size_t, Code&) { return open.pop_back(), true; }
  bool on_key_part(View part, std::size_t, Code&) { return name.append(part), true; }
  bool on_key(View last, std::size_t, Code& error) {
    name.append(last);
    if (!open.back().insert(name).second) return error = json::error::exception, false;
    return name.clear(), true;
  }
  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_array_begin(Code&) { return true; }
  bool on_array_end(std::size_t, Code&) { return true; }
  bool on_string_part(View, std::size_t, Code&) { return true; }
  bool on_string(View, std::size_t, Code&) { return true; }
  bool on_number_part(View, Code&) { return true; }
  bool on_int64(std::int64_t, View, Code&) { return true; }
  bool on_uint64(std::uint64_t, View, Code&) { return true; }
  bool on_double(double, View, Code&) { return true; }
  bool on_bool(bool, Code&) { return true; }
  bool on_null(Code&) { return true; }
  bool on_comment_part(View, Code&) { return true; }
  bool on_comment(View, Code&) { return true; }
};

}  // namespace

Result<json::value> parse_json_once(std::string_view text, std::string_view where) {
  json::value value = RETORT_TRY(parse_json(text, where));
  json::basic_parser<RepeatedMembers> parser{json::parse_options()};
  json::error_code error;
  parser.write_some(false, text.data(), text.size(), error);
  if (!error) return value;
  return fail(ErrorCode::kInvalid, std::string(where), "'{}' is there twice", parser.handler().name);
}

Result<void> check_text(std::string_view key, std::string_view text, std::string_view where,
                        std::size_t most) {
  const std::string in(where);
  if (text.size() > most) return fail(ErrorCode::kInvalid, in, "'{}' is longer than {} bytes", key, most);
  if (!is_utf8(text)) return fail(ErrorCode::kInvalid, in, "'{}' is not UTF-8", key);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F steer terminals too: c2 80 to c2 9f.
    if (byte < 0x20 || byte == 0x7f || (byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0))
      return fail(ErrorCode::kInvalid, in, "'{}' holds a control character", key);
  }
  return {};
}

}  // namespace retort
