"""What hosts report against what is recorded and wanted.

`judgement` decides, purely; `reports` takes reports in and writes what was decided; `repairs` asks for the operations
that end what was left half done on hosts; `keeper` sees to it that VMs which shall run do.
"""
