# Run at install time for one component: fills the paths into its units and puts units, user and default
# configuration in their places. In: packaging (this folder), component, units, configuration.
set(PREFIX "${CMAKE_INSTALL_PREFIX}")
set(BINDIR "${PREFIX}/bin")
if(PREFIX STREQUAL "/usr")
  set(SYSCONFDIR "/etc")
else()
  set(SYSCONFDIR "${PREFIX}/etc")
endif()
string(RANDOM LENGTH 12 random)
set(filled "/tmp/retort-install-${random}")
foreach(unit ${units})
  # @ONLY: ${RETORT_COORDINATOR} and the like are for systemd.
  configure_file("${packaging}/${unit}.in" "${filled}/${unit}" @ONLY)
  file(INSTALL "${filled}/${unit}" DESTINATION "${PREFIX}/lib/systemd/system"
       PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
endforeach()
file(REMOVE_RECURSE "${filled}")
file(INSTALL "${packaging}/retort-${component}.sysusers" DESTINATION "${PREFIX}/lib/sysusers.d"
     RENAME retort-${component}.conf)
foreach(name ${configuration})
  # An operator's file is kept.
  if(NOT EXISTS "$ENV{DESTDIR}${SYSCONFDIR}/retort/${name}.env")
    file(INSTALL "${packaging}/${name}.env" DESTINATION "${SYSCONFDIR}/retort")
  endif()
endforeach()
