# cmake -DNM=... -DOBJECT=... -DTABLE=<op>_kernels_<isa> -P check_isolation.cmake
# A file compiled with -m flags may give the linker its kernel table and nothing else. Any other global
# (in practice a weak symbol of a template or inline function that a header brought in) could be taken
# by the linker for the whole program, which then dies of an illegal instruction on an older CPU.
execute_process(COMMAND ${NM} --defined-only --extern-only -C ${OBJECT}
                OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
set(leaked "")
foreach(line IN LISTS lines)
  if(NOT line MATCHES " fastbert::${TABLE}$" AND NOT line MATCHES " V DW\\.ref\\.")
    string(APPEND leaked "\n  ${line}")
  endif()
endforeach()
if(leaked)
  message(FATAL_ERROR "${OBJECT} leaks symbols compiled with -m flags:${leaked}\n"
    "Put them in an anonymous namespace, or keep the header they come from out of vec and .inl files.")
endif()
