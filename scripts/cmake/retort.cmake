# Build settings and the three functions that every folder uses.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
add_compile_options(-Wall -Wextra -Wshadow -Wno-missing-field-initializers -Werror -fno-omit-frame-pointer -fstack-protector-strong)
if(RETORT_SANITIZE)
  add_compile_options(-fsanitize=${RETORT_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${RETORT_SANITIZE})
  if(RETORT_SANITIZE STREQUAL "thread")
    add_compile_options(-Wno-tsan)  # Asio's fences are not understood; what they order is behind mutexes too
  endif()
endif()
include_directories(${CMAKE_SOURCE_DIR})
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

# retort_library(NAME DEPS a b … [EXCLUDE x.cc …]): a static library of every other .cc file in this folder (not below it).
function(retort_library name)
  cmake_parse_arguments(arg "" "" "DEPS;EXCLUDE" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  foreach(file main.cc ${arg_EXCLUDE})
    list(REMOVE_ITEM sources ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  endforeach()
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC ${arg_DEPS})
endfunction()

# retort_binary(NAME DEPS a b …): an installed executable from this folder's main.cc, in the package of its name
# (retort itself in retort-cli).
function(retort_binary name)
  cmake_parse_arguments(arg "" "" "DEPS" ${ARGN})
  add_executable(${name} main.cc)
  target_compile_definitions(${name} PRIVATE RETORT_VERSION="${PROJECT_VERSION}")
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  string(REGEX REPLACE "^retort-?" "" component ${name})
  if(NOT component)
    set(component cli)
  endif()
  install(TARGETS ${name} RUNTIME DESTINATION bin COMPONENT ${component})
endfunction()

# retort_test(NAME LABEL unit DEPS a b …): one GoogleTest executable of every .cc file in this folder.
# Counted as skipped by ctest only when every test in it was skipped.
function(retort_test name)
  cmake_parse_arguments(arg "" "LABEL;TIMEOUT" "DEPS" ${ARGN})
  foreach(dep ${arg_DEPS})  # RETORT_BUILD may have left it out
    if(dep MATCHES "^retort_" AND NOT TARGET ${dep})
      message(STATUS "${name} is not built: there is no ${dep}")
      return()
    endif()
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  add_executable(${name} ${sources})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} test_support GTest::gtest GTest::gmock GTest::gtest_main)
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(CMAKE_CROSSCOMPILING OR RETORT_SANITIZE)  # emulators and sanitizers take their time
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 10")
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT RETORT_BIN_DIR=${CMAKE_BINARY_DIR}/bin
    # gtest_discover_tests takes no lists as values: a second variable has to come in by another property.
    ENVIRONMENT_MODIFICATION RETORT_SOURCE_DIR=set:${CMAKE_SOURCE_DIR})
endfunction()
