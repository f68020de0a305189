# The Debian packages: scripts/package makes them with CPack, one a component.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_PACKAGE_NAME retort)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "Retort maintainers <retort@localhost>")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_COMPONENTS_ALL "")

# retort_package(COMPONENT SUMMARY … DESCRIPTION … [DEPENDS …] [RECOMMENDS …]): control files are those of
# debian/COMPONENT.
function(retort_package component)
  cmake_parse_arguments(arg "" "SUMMARY;DESCRIPTION;DEPENDS;RECOMMENDS;SUGGESTS" "" ${ARGN})
  string(TOUPPER ${component} upper)
  set(CPACK_COMPONENTS_ALL ${CPACK_COMPONENTS_ALL} ${component} PARENT_SCOPE)
  set(CPACK_DEBIAN_${upper}_PACKAGE_NAME retort-${component} PARENT_SCOPE)
  set(CPACK_COMPONENT_${upper}_DESCRIPTION "${arg_SUMMARY}\n${arg_DESCRIPTION}" PARENT_SCOPE)
  set(CPACK_DEBIAN_${upper}_PACKAGE_DEPENDS "${arg_DEPENDS}" PARENT_SCOPE)
  set(CPACK_DEBIAN_${upper}_PACKAGE_RECOMMENDS "${arg_RECOMMENDS}" PARENT_SCOPE)
  set(CPACK_DEBIAN_${upper}_PACKAGE_SUGGESTS "${arg_SUGGESTS}" PARENT_SCOPE)
  file(GLOB control ${CMAKE_CURRENT_SOURCE_DIR}/debian/${component}/*)
  set(CPACK_DEBIAN_${upper}_PACKAGE_CONTROL_EXTRA "${control}" PARENT_SCOPE)
endfunction()

set(same "(= ${PROJECT_VERSION})")
if(TARGET retort-coordinator)
  retort_package(coordinator SUMMARY "coordinator of a fleet of devices that serve language models"
    DESCRIPTION "Keeps the teacher model, runs distillation, pruning and quantization jobs for each class of device, and brings every device its student."
    DEPENDS "retort-serve ${same}, systemd" RECOMMENDS "retort-worker, retort-cli")
  retort_package(cli SUMMARY "command line of Retort's coordinator"
    DESCRIPTION "Drives a coordinator over REST: teachers, classes, jobs, devices, rollouts." SUGGESTS "retort-coordinator")
endif()
if(TARGET retort-worker)
  retort_package(worker SUMMARY "compresses language models: prunes, distils, quantizes"
    DESCRIPTION "One process a job, driven by a recipe. Useful alone, and started by retort-coordinator."
    DEPENDS "libopenblas0-openmp" RECOMMENDS "retort-serve")
endif()
if(TARGET retort-agent)
  retort_package(agent SUMMARY "keeps the language model that this device should serve"
    DESCRIPTION "Enrols with a coordinator, measures the device, pulls, verifies, proves and serves the student that was tailored to it."
    DEPENDS "retort-serve ${same}, systemd, polkitd")
  retort_package(serve SUMMARY "serves a GGUF language model over HTTP"
    DESCRIPTION "OpenAI-style HTTP for small models on small processors; also evaluates, measures and describes them.")
endif()
include(CPack)
